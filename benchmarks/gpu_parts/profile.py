"""Where the time of a step goes: the longest kernels, and the gaps between kernels."""

import collections

import torch
import train_step

PROFILED = 4
LISTED, WRITTEN = 10, 60
SIDES = {"jit_compile=True": ["metrics", "jit"], "jit_compile=auto": ["metrics", "auto"]}


def run(rows):
    (rows.out / "profile.txt").write_text("")
    for name, options in list(SIDES.items())[: 1 if rows.small else None]:
        with rows.side(name):
            job = train_step.make_job("tiny" if rows.small else "GPT2", rows.device, options)
            events = profiled(train_step.our_model(job), job)
            report(rows, name, events)


def profiled(model, job):
    """The device's events of the last steps but one: `(name, start, end)` in microseconds."""
    activity = torch.profiler.ProfilerActivity.CUDA if job.on_gpu else None
    profiler = torch.profiler.profile(activities=[activity or torch.profiler.ProfilerActivity.CPU])
    last = job.steps - 1

    def at_step(step):
        if job.on_gpu and step in (last - PROFILED, last):
            torch.cuda.synchronize()
        if step == last - PROFILED:
            profiler.start()
        elif step == last:
            profiler.stop()

    model.fit(train_step.batches(job, at_step), verbose=0, shuffle=False)
    wanted = torch.autograd.DeviceType.CUDA if job.on_gpu else torch.autograd.DeviceType.CPU
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == wanted
    ]


def report(rows, name, events):
    """A row of the whole, a row for each of the longest kernels, more of them in the file."""
    busy, end = 0.0, 0.0
    begin = min(start for _, start, _ in events)
    for _, start, stop in sorted(events, key=lambda event: event[1]):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    by_name = collections.defaultdict(list)
    for kernel, start, stop in events:
        by_name[kernel].append(stop - start)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    rows.add(
        name,
        wall_ms=1e-3 * (end - begin) / PROFILED,
        busy_ms=1e-3 * busy / PROFILED,
        gaps=1 - busy / (end - begin),
        kernels_a_step=len(events) / PROFILED,
    )
    lines = [f"{name}: ms a step, share of busy, calls a step, kernel"]
    for number, (kernel, times) in enumerate(longest[:WRITTEN]):
        values = {
            "ms": 1e-3 * sum(times) / PROFILED,
            "share": sum(times) / busy,
            "calls": len(times) / PROFILED,
        }
        lines.append("{ms:9.4f} {share:7.4f} {calls:8.2f} ".format(**values) + kernel)
        if number < LISTED:
            rows.add(f"{name}, kernel {number + 1}", **values, kernel=kernel.replace("|", "/")[:70])
    with open(rows.out / "profile.txt", "a") as file:
        file.write("\n".join(lines) + "\n\n")
