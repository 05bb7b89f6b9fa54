"""Gateway: the front door. HTTP in, leases from the fleet, whole events out."""
