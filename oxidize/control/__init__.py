"""Control of a running process by another one: queries at the takeover socket, and the reload coordinator."""
