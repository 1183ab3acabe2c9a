"""How stores misbehave beyond lost requests: answers of the past, credentials that expire."""
