"""``flask lifecycle doctor``: checks the files of a deployment against the settings of the application.

Files are read into values that know their line (``source``), and those into one small model of a workload, whatever the
orchestrator (``model``; ``kubernetes``, ``docker``, ``systemd``, ``gunicorn``). A table of rules
(``rules``) finds what is wrong with it. Nothing of this needs a running application, or Flask; ``examine`` checks
a file. ``manifest`` goes the other way: it fills ``templates`` in from the settings.

The rules guess nothing: a variable that another tool replaces, a command that is a script, or a container that may not
be the application is not checked, or a warning says so. Nothing in a file is run, and all text is escaped before it is
printed, because a name may contain control sequences of a terminal.
"""
