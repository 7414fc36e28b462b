"""Publishing: signed releases of artifacts in a folder that any static file server can serve."""
