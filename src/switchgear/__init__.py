"""Circuit breakers that every process of an application shares, owned by one manager process."""
