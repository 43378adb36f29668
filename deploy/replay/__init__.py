"""Recorded traffic, played through a fleet of emitters at any speed, with known totals to check a cluster against."""
