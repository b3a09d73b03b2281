"""The same function, faster: exact rewrites of a trained network, proved before they are used."""
