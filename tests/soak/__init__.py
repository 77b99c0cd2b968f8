"""The soak: real processes over the public interface, killed, stopped and run for long, and what must hold after it.

``python -m tests.soak kills --kills 10000`` (also: stops, massacre, long, namespaces, mutants), from the root of the
repository. tests/test_soak.py runs a short share of each.
"""
