"""Speed of what dense evaluation spends its time on, the backbone aside: counting pixels and finding neighbours."""
