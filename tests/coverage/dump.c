/* dump.c - in a coverage build only: lets a process that ends by _exit() write down what it has reached (sitecustomize.py). */
extern void __gcov_dump(void);

__attribute__((visibility("default"))) void shmt_coverage_dump(void);

void shmt_coverage_dump(void) { __gcov_dump(); }
