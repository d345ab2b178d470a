"""The service tortured: random faults while it works, and afterwards everything must be as if there had been none.

Run it with `make torture`, from the repository; it is no part of the test suite.
"""
