"""Moving named file descriptors and an opaque state from one process to its successor."""
