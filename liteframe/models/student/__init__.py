"""The student: config, network, files, temporal mixers, cost, and its first weights."""
