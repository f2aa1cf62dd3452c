"""The runs of a sweep: names and ids, groups, cost and measured throughput."""
