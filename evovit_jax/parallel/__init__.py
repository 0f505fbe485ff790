"""Many devices and many processes: the mesh, who takes part, SIGTERM."""
