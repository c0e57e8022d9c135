"""Write the ranges that Harvester would put into a worker's access point: PanDA's names for the events of one job."""

import json

TASK, PANDA_ID, FILE_ID, ATTEMPTS = 8848710, 3005316503, 6391858827, 10
EVENTS, PER_RANGE = 5000, 5

ranges = [
    {
        "eventRangeID": f"{TASK}-{PANDA_ID}-{FILE_ID}-{first}-{ATTEMPTS}",
        "LFN": "generate",
        "GUID": "63A015D3-789D-E74D-BAA9-9F95DB068EE9",
        "scope": "mc15_13TeV",
        "startEvent": first,
        "lastEvent": first + PER_RANGE - 1,
    }
    for first in range(1001, EVENTS, PER_RANGE)  # the first thousand events are somebody else's
]

with open("JobsEventRanges.json", "w") as out:
    json.dump({str(PANDA_ID): ranges}, out)
