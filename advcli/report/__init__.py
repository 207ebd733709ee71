"""What people look at. Reads events, reports and errors; never live objects, never torch."""
