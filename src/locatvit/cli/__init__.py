"""The command line: one verb a task, one file a verb."""
