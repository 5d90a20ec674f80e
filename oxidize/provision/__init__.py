"""Setting up clients: adding peers to a server's configuration, removing them, and wg-quick files, both ways.

The rule: text in, text out, and one module that writes files. A new configuration is loaded by `oxidize.config` before
it replaces anything.
"""
