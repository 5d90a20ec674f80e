"""The service manager: notifications, stored descriptors, queries to systemctl, the watchdog, a service's rights."""
