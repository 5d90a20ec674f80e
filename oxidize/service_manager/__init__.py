"""The service manager: notifications and stored descriptors, queries to systemctl, the watchdog."""
