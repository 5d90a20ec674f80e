"""The product as installed, on a real systemd that boots in namespaces of its own."""
