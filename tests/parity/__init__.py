"""Parity tests: the cases of the suites of Terminus and Lightship, asked of this package from outside."""
