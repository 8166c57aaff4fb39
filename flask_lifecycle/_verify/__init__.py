"""``flask lifecycle verify``: shuts a server command down in many situations and reports which guarantee holds.

``scenarios`` has what is tried and ``runner`` tries it, each scenario on a fresh process (``subject``) through raw
sockets (``client``). ``routes`` has the work that the application under test does meanwhile. Only the command line
imports these modules, and the application under test the last one.
"""
