"""A plan as text and as Markdown."""

import math

from ltjax.commands.planning.topologies import GiB


def text(plan: dict) -> str:
  """A plan for a terminal; what is estimated is called so."""
  where, data = plan["topology"], plan["data"]
  lines = [f"{where['name']}: {where['devices']} devices ({where['kind']}) on {where['hosts']} "
           f"{'host' if where['hosts'] == 1 else 'hosts'}; {plan['precision']}",
           f"{data['name']}: {data['classes']:,} classes, {data['train_images']:,} training images, "
           f"{data['test_images']:,} test images ({data['source']})"]
  for name, stage in plan["stages"].items():
    lines += ["", f"{name}: {stage['epochs']} epochs, {stage['steps']:,} steps of {stage['batch_size']} images"]
    for kind in ("train", "evaluation"):
      lines += [f"  {line}" for line in _program(kind, stage[kind])]
    if times := stage["estimated"]:
      lines.append(f"  estimated, at best: {times['images']:,.0f} images/s, {_duration(times['epoch'])} an epoch, "
                   f"{_duration(times['total'])} in all with evaluations, {times['device_hours']:,.1f} chip-hours")
    if host := stage.get("host"):
      lines.append(f"  each host must decode {host['needed']:,.0f} images/s (estimated); this machine decodes "
                   f"{host['measured']:,.0f} on {host['cores']} cores (measured)")
    if fit := stage.get("largest_batch"):
      lines.append(f"  largest batch that fits: {fit:,} (within an eighth)")
  if plan.get("compare"):
    lines += ["", *table(plan["compare"])]
  return "\n".join(lines)


def _program(kind: str, program: dict) -> list[str]:
  memory = ", ".join(f"{what} {_bytes(size)}" for what, size in program["memory"].items())
  if program["excess"]:
    return [f"{kind} step: does not fit: {program['excess']}"]
  margin = "" if program["margin"] is None else f"; {_bytes(program['margin'])} left" if program["fits"] else (
      f"; {_bytes(-program['margin'])} too much")
  lines = [f"{kind} step, a device: {_bytes(program['bytes'])} ({memory}{margin})"]
  lines.append(f"  {_scaled(program['flops'])}FLOP, {_scaled(program['traffic'])}B of traffic in main memory"
               + (f", {program['intensity']:.0f} FLOP a byte" if program["intensity"] else "")
               + f"; compiled in {program['compile_seconds']:.0f} s")
  for each in program["collectives"]:
    lines.append(f"  {each['count']} {each['kind']} ({', '.join(each['dtypes'])}), {_scaled(each['bytes'])}B")
  if bound := program["estimated"]:
    parts = ", ".join(f"{part} {1e3 * bound[part]:.2f}" for part in ("compute", "memory", "interconnect"))
    lines.append(f"  estimated, at best: {1e3 * bound['seconds']:.2f} ms, most of it {bound['bound_by']} (ms: {parts})")
  return lines


def table(plans: dict[str, dict]) -> list[str]:
  """Markdown rows that compare plans, one a stage."""
  rows = ["| config | stage | batch | fits | GiB a device | TFLOP | GB of traffic | collectives | step, ms | bound by "
          "| images/s | hours | chip-hours |", f"| --- | --- | ---: | --- |{' ---: |' * 5} --- |{' ---: |' * 3}"]
  for label, plan in plans.items():
    for name, stage in plan["stages"].items():
      step, times = stage["train"], stage["estimated"]
      cells = [label, name, stage["batch_size"], "yes" if step["fits"] else "no", f"{step['bytes'] / GiB:.2f}"]
      if step["excess"]:
        cells += ["-"] * 3
      else:
        cells += [f"{step['flops'] / 1e12:.3f}", f"{step['traffic'] / 1e9:.2f}",
                  sum(each["count"] for each in step["collectives"])]
      cells += [f"{1e3 * step['estimated']['seconds']:.2f}", step["estimated"]["bound_by"]] if step["estimated"] else [
          "-", "-"]
      cells += [f"{times['images']:,.0f}", f"{times['total']:.2f}", f"{times['device_hours']:.1f}"] if times else [
          "-"] * 3
      rows.append(f"| {' | '.join(map(str, cells))} |")
  return rows


def too_large(plan: dict) -> str:
  """One sentence on the first program that does not fit; empty where all do."""
  for name, stage in plan["stages"].items():
    for kind, key in (("train", "batch_size"), ("evaluation", "evaluation_batch_size")):
      program = stage[kind]
      if program["fits"]:
        continue
      peaks = plan["topology"]["device_peaks"]
      by = program["excess"] or f"{_bytes(-program['margin'])} too much"
      room = peaks["memory"] if peaks else 0
      # Most of the memory grows with the batch.
      fitting = int(stage[key] * room / max(program["bytes"], 1)) // plan["topology"]["devices"]
      fitting *= plan["topology"]["devices"]
      where = f"{name}.batch_size" if kind == "train" else "eval_batch_size"
      return (f"{where}: the {kind} step with {stage[key]} images does not fit into a device's memory ({by}); about "
              f"{fitting} would (estimated; --fit-batch finds the largest batch), or write --config.precision=bf16")
  return ""


def _scaled(value: float) -> str:
  """A number with three digits and its prefix, as "1.55 T"."""
  prefixes = ("", "k", "M", "G", "T")
  index = min(max(int(math.log10(value) // 3), 0), 4) if value >= 1 else 0
  return f"{value / 1000**index:.3g} {prefixes[index]}"


def _bytes(size: float) -> str:
  unit, name = next(((unit, name) for unit, name in ((GiB, "GiB"), (2**20, "MiB")) if size >= unit), (2**10, "KiB"))
  return f"{size / unit:.2f} {name}"


def _duration(hours: float) -> str:
  return f"{hours:,.2f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
