"""What the experiments of one data set share; each function returns a config to change further."""
