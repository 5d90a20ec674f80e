"""Sockets and the data path: the event loop, UDP, TUN and its user-space stand-in, HTTP, name look-ups."""
