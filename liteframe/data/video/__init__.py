"""Video files: which frames, readers in a process that can be killed, checks of containers, scan."""
