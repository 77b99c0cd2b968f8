/* reader.c - read(buffer) -> int: the full read that the consumer of every candidate does, as one call of about 60 ns, so
 * that what is compared is the hand-off and not numpy's reductions (1.8 us before the first byte). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "read.h"

static PyObject *reader_read(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    uint64_t sum = 0;
    const size_t nbytes = (size_t)view.len;
    const int large = nbytes > 65536;
    PyThreadState *state = large ? PyEval_SaveThread() : NULL;
    sum = read_all(view.buf, nbytes);
    if (large) {
        PyEval_RestoreThread(state);
    }
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(sum);
}

static PyMethodDef methods[] = {
    {"read", reader_read, METH_O, "read(buffer) -> int: loads every byte once"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "reader", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_reader(void) { return PyModule_Create(&module); }
