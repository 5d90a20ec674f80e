"""The host's network: interface, routes, policy rules, nftables, DNS settings, and their removal after a crash."""
