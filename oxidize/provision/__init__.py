"""Setting up clients: peers added to a server's configuration and taken out of it, and wg-quick's files, both ways.

The rule: text in, text out, and one module that writes files. What is to become a configuration is loaded by
`oxidize.config` before it replaces anything.
"""
