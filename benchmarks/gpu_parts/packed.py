"""Padding and packed documents in long rows: `benchmarks/attention.py` on the device."""

import attention
import harness


def run(rows):
    length = 64 if rows.small else 8192
    for side in attention.GPU_SIDES:
        with rows.side(side):
            result = harness.medians([attention.run(side, length, rows.device)])
            base = "mask of documents" if "documents" in side else "mask"
            milliseconds = 1e3 * result["seconds"]
            known = milliseconds if side == base else rows.earlier("packed", base).get("ms")
            rows.add(
                side,
                length=length,
                ms=milliseconds,
                over_mask=milliseconds / known if known else None,
                peak_GB=1e-9 * result["bytes"],
            )
