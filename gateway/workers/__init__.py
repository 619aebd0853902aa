"""One gateway in several processes that share its port: started, watched, and counted together."""
