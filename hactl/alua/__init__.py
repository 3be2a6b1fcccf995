"""Target port groups, their states and transitions (SPC-4 5.15)."""
