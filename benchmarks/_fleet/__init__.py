"""What ``benchmarks/fleet.py`` and the tests marked ``fleet`` are made of."""
