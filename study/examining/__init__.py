"""What `study doctor` looks at: this machine, the services that a study needs, the cluster."""
