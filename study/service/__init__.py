"""The service: follow, launch, stop, resume and extend studies through a browser or any other client."""
