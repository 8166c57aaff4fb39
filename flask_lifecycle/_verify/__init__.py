"""``flask lifecycle verify``: starts a server command, stops it in every hard moment, and says which promise holds.

``scenarios`` has what is tried and ``runner`` tries it, each scenario on a fresh process (``subject``) through raw
sockets (``client``). ``routes`` has the work that the application under test does meanwhile. Only the command line
imports these modules, and the application under test the last one.
"""
