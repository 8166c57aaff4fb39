"""What ``flask lifecycle doctor`` does: hold the files of a deployment against the settings of the application.

Files are read into values that know their line (``_source``), those into one small model of a workload, whatever the
orchestrator (``_model``; ``_kubernetes``, ``_compose``, ``_systemd``), and a table of rules (``_rules``) says what is
wrong with it. Nothing of that needs an application that runs, or Flask; ``_command`` is the command at the rim.

What the files say is taken for what it is, never guessed: a variable that something else will replace, a command that
is a script, or a container that may be somebody else's is not judged, or a warning says so. Nothing in a file is run,
and nothing in it is printed as it is, since a name may hold what a terminal takes for a command.
"""
