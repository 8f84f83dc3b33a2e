"""Complete runs: a configuration in, a run folder with a result out."""
