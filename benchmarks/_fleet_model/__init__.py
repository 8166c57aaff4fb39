"""What ``benchmarks/fleet_model.py`` is made of."""
