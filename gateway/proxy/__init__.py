"""From a client's request to a replica's answer: tries, streams, resumption."""
