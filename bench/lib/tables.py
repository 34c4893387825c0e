"""Results as tables, for the terminal and for the documentation."""

from compare import control, is_control, told
from settings import BUSY, SHOWN

INTERVAL = "95 % interval"


def table(title, head, rows):
    lines = [head, ["-" * len(word) for word in head], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for i, width in enumerate(widths):
        lines[1][i] = "-" * width
    return "\n".join([f"\n{title}", ""] + [
        "| " + " | ".join(word.ljust(width) for word, width in zip(line, widths)) + " |"
        for line in lines])


def span(row, name, digits=3):
    median, low, high = (f"{row[name + end]:.{digits}f}" for end in ("", "_min", "_max"))
    return f"{median} ({low}-{high})"


def between(row, name, digits=3):
    """What compare() has estimated, with its interval; of a base there is nothing to say."""
    if name not in row or (row[name] is None and name != "ratio"):
        return "-"
    if row[name] is None:
        busy = row["slices"] - row["idle"]
        return f"none: the worker was busy in {busy} of {row['slices']} slices"
    estimate, low, high = (f"{row[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    if high == "inf":
        return f"{estimate} (one pair)"
    return f"{estimate} ({low}{' to ' if float(low) < 0 else '-'}{high})"


def doubts(results, name="ratio", same=1):
    """What controls say against the table that they stand in."""
    said = []
    for row in results:
        if is_control(row) and not control(results, row, name, same):
            where = ", ".join(str(row[label]) for label in ("build", "certificate") if label in row)
            where += f", TLS {row['tls']}"
            where += f", {row['clients']} clients" if "clients" in row else ""
            said.append(f"The control of {where} does not contain {same}: "
                        f"{between(row, told(row, name))}. Nothing is shown by the rows beside it.")
    return "".join(f"\n\n{line}" for line in said)


def of_pairs(results):
    """How much is behind a table."""
    most = max(r["pairs"] for r in results if "ratio" in r)
    sets = max(len(r["sets"]) for r in results)
    return (f"{most} pair{'s' * (most > 1)} (A, B, B, A) of each row in {sets} "
            f"set{'s' * (sets > 1)} of processes")


def costs(title, results):
    """Rows of compare(). Bytes are those that the server has received and sent."""
    labels = {"build": "nginx", "certificate": "certificate", "tls": "TLS", "clients": "clients"}
    for name in ("certificate", "clients"):
        if len({r[name] for r in results}) == 1:
            title += f"; {labels.pop(name)}: {results[0][name]}"
    fast = any(r.get("by") == "fast" for r in results)
    head = [*labels.values(), "sessions", *([f"fastest tenth, ratio ({INTERVAL})"] if fast else []),
            "worker CPU, us", "user", "kernel",
            f"ratio ({INTERVAL})", "of all slices", "handshakes/s", f"ratio ({INTERVAL})",
            "worker busy", "slices left out", "store CPU, us", "p50, us", "p99", "p99.9",
            "bytes in", "out"]
    lines = [[*(str(r[label]) for label in labels), r["sessions"],
              *([between(r, "fast_ratio")] if fast else []),
              f"{r['us']:.1f}", f"{r['user_us']:.1f}", f"{r['kernel_us']:.1f}",
              between(r, "ratio"), between(r, "ratio_all") if r["saturated"] else "-",
              f"{r['rate']:.0f}", between(r, "rate_ratio"),
              f"{r['busy'] * 100:.0f} %",
              f"{r['left_out']} of {r['slices']}" if r["saturated"] else "-",
              f"{r['store_us']:.1f}" if r["store_us"] else "-",
              f"{r['p50_us']:.0f}", f"{r['p99_us']:.0f}", f"{r['p999_us']:.0f}",
              f"{r['sent']:.0f}", f"{r['received']:.0f}"] for r in results]
    return table(f"{title}; {of_pairs(results)}", head, lines) + doubts(results)


def resumed(results):
    text = costs("Resumed handshakes: worker CPU, handshakes per second, and ratios to "
                 "ssl_session_cache shared", results)
    alone = [r for r in results if r["clients"] == 1]
    rows = [[r["build"], r["tls"], r["sessions"], between(r, "added_us", 1)] for r in alone
            if r["sessions"] != r["base"]]
    return text + "\n" + table(
        "Latency of one client, p50, microseconds more than with ssl_session_cache shared; "
        f"{of_pairs(alone)}",
        ["nginx", "TLS", "sessions", f"us more ({INTERVAL})"], rows) + doubts(alone, "added_us", 0)


def full(results):
    return costs("Full handshakes: worker CPU, handshakes per second, and ratios to nginx "
                 "without the module", results)


def many(results):
    return "\n".join(
        costs(f"{title} in many pairs, beside {beside}",
              [r for r in results if r["what"] == what])
        for what, title, beside in (
            ("resumed", "Resumed handshakes", "ssl_session_cache shared"),
            ("full", "Full handshakes", "nginx without the module")))


def together(results):
    return table(
        f"Resumed handshakes of {results[0]['clients']} clients with one session, and with one for each; "
        f"ratios of worker CPU; {of_pairs(results)}",
        ["TLS", "clients offer", "lookups in Redis per handshake", "worker CPU, us",
         f"ratio ({INTERVAL})", "of all slices", "store CPU, us"],
        [[r["tls"], r["sessions"], f"{r['lookups']:.3f}", f"{r['us']:.1f}", between(r, "ratio"),
          between(r, "ratio_all"), f"{r['store_us']:.1f}"] for r in results])


def early(results):
    return costs("Handshakes with a request in early data, and its answer", results)


def schedule(results):
    return table(
        "Resumed handshakes on a schedule: latency from the scheduled time, microseconds; "
        f"{of_pairs(results)}",
        ["nginx", "TLS", "handshakes/s", "of what nginx shared reaches", "sessions", "p50", "p99",
         "p99.9", "max", f"p50, more ({INTERVAL})", "worker busy", "clients late at most"],
        [[r["build"], r["tls"], str(r["per_second"]), f"{r['part'] * 100:.0f} %", r["sessions"],
          *(f"{r[k]:.0f}" for k in ("p50_us", "p99_us", "p999_us", "max_us")),
          between(r, "added_us", 1), f"{r['busy'] * 100:.0f} %", str(r["behind_us"])]
         for r in results]) + doubts(results, "added_us", 0)


def memory(results):
    kinds = ("rss", "pss", "uss", "data")
    return table(
        f"Worker memory per handshake in progress, bytes, {results[0]['handshakes']} at once; "
        "more than in the second line (min-max)",
        ["nginx", "TLS", "what", *(kind.upper() for kind in kinds),
         "more RSS", "more USS (min-max)", "more DATA"],
        [[r["build"], r["tls"], r["what"], *(str(r[kind]) for kind in kinds),
          f"{r['rss_more']:+}",
          f"{r['uss_more']:+} ({r['uss_more_min']:+} {r['uss_more_max']:+})",
          f"{r['data_more']:+}"] for r in results])


def lookup(results):
    return table(
        "Lookup in redis on the loopback, $ssl_session_fetch_time, microseconds",
        ["nginx", "TLS", "clients", "lookups", "p50", "p99", "max"],
        [[r["build"], r["tls"], *(str(r[k]) for k in (
            "clients", "lookups", "p50_us", "p99_us", "max_us"))] for r in results])


def reconnect(results):
    return table(
        "Worker CPU of a new connection to Redis, microseconds; medians of "
        f"{results[0]['rounds']} rounds (min-max)",
        ["nginx", "TLS", "link", "us"],
        [[r["build"], r["tls"], r["sessions"], span(r, "us", 0)] for r in results])


def sealing(results):
    rows = []
    for r in results:
        # A resumption of TLS 1.3 gives a ticket, which is a session of its own.
        for version, steps in (("1.2", ("check", "open")),
                               ("1.3", ("check", "open", "issue", "seal"))):
            rows.append([r["build"], version, *(str(r[f"{step}_ns"]) for step in (
                "check", "refuse", "open", "issue", "seal")),
                str(sum(r[f"{step}_ns"] for step in steps))])
    return table(
        "Sealing, nanoseconds for a session of 150 bytes, and what of it a resumed handshake has: "
        "the check of its ID and the name of its entry, and opening; in TLS 1.3 issuing and "
        "sealing a ticket, too",
        ["nginx", "TLS", "check", "refuse a forged ID", "open", "issue", "seal", "a handshake"],
        rows)


def forged(results):
    return table(
        "64 clients that offer session IDs which nobody has issued; beside "
        f"{results[0]['base']}, {of_pairs(results)}",
        ["nginx", "TLS", "sessions", "handshakes/s", f"ratio ({INTERVAL})", "worker CPU, us",
         f"ratio ({INTERVAL})", "of all slices", "slices left out"],
        [[r["build"], r["tls"], r["sessions"], f"{r['rate']:.0f}", between(r, "rate_ratio"),
          f"{r['us']:.1f}", between(r, "ratio"), between(r, "ratio_all"),
          f"{r['left_out']} of {r['slices']}"] for r in results]) + doubts(results)


def outage(results):
    return table(
        "64 clients that all offer sessions, Redis hung (SIGSTOP) or killed; beside full "
        f"handshakes of nginx without the module, medians of {results[0]['runs']} rounds",
        ["nginx", "TLS", "Redis", "handshakes/s", "ratio (min-max)",
         "per second of CPU, ratio (min-max)", "p50, ms more",
         "p99, ms more", "log lines, most", "first hit after its return, ms (max)"],
        [[r["build"], r["tls"], r["what"], str(r["per_second"]), span(r, "rate"), span(r, "cpu"),
          f"{r['p50_more_ms']:+.2f}", f"{r['p99_more_ms']:+.2f}", str(r["log_lines"]),
          f"{r['first_hit_ms']} ({r['first_hit_ms_max']})"] for r in results])


def growth(results):
    parts = []
    for what, title in (("sessions", "stored sessions"),
                        ("servers", "servers of the backend"),
                        ("blocks", "server{} blocks")):
        rows = [r for r in results if r["what"] == what]
        first = {}
        for r in rows:
            first.setdefault(r["sessions"], r["us"])
        # Stores cannot be filled in turns: those were not measured side by side.
        parts.append(table(
            f"Resumed handshakes of TLS {rows[0]['tls']} by number of {title}; {of_pairs(rows)}, "
            "without a control",
            ["nginx", title, "sessions", f"worker CPU, us ({INTERVAL})", "to the fewest",
             "store CPU, us"],
            [[r["build"], f"{r['n']:,}", r["sessions"],
              between(r, "us", 1),
              f"{r['us'] / first[r['sessions']]:.3f}" if what == "sessions"
              else between(r, "ratio"),
              f"{r['store_us']:.1f}" if r["store_us"] else "-"] for r in rows]))
    rows = [r for r in results if r["what"] == "suspended"]
    parts.append(table(
        "Handshakes of TLS 1.3 that wait for a store: memory, full handshakes of others meanwhile "
        "beside those of a worker on which none wait, and CPU from the store's answer to the end",
        ["nginx", "suspended", "bytes each", "more than nginx's own", "others, us",
         f"ratio ({INTERVAL})", "came to their end", "us each"],
        [[r["build"], f"{r['n']:,}", str(r["bytes"]), f"{r['more_bytes']:+}", f"{r['us']:.1f}",
          between(r, "ratio"), f"{r['finished']:,}", f"{r['finish_us']:.1f}"] for r in rows]))
    return "\n".join(parts)


def syscalls(results):
    names = sorted({call for r in results for call, n in r["calls"].items() if n >= 0.1})
    return table(
        "System calls of the worker per resumed handshake",
        ["nginx", "TLS", "clients", "sessions", "all", *names],
        [[r["build"], r["tls"], str(r["clients"]), r["sessions"],
          f"{sum(r['calls'].values()):.1f}",
          *(f"{r['calls'].get(name, 0):.1f}" for name in names)] for r in results])


def profile(results):
    if not results:
        return "\nProfile: perf is not here, or may not be used"
    parts = list(results[0]["us"])
    return table(
        f"Where a worker's CPU goes, microseconds per resumed handshake of {results[0]['clients']} "
        f"clients, with perf at work; medians of {results[0]['rounds']} rounds",
        ["nginx", "TLS", "sessions", *parts, "lookups in a write"],
        [[r["build"], r["tls"], r["sessions"], *(f"{r['us'][part]:.1f}" for part in parts),
          "-" if r["shared"] is None else f"{r['shared']:.1f}"] for r in results])


def status(results):
    counting = [r for r in results if r["what"] == "counting"]
    scrapes = [r for r in results if r["what"] == "scrapes"]
    return table(
        f"What counting costs: {counting[0]['clients']} clients that resume by Redis, with a location "
        f"that shows the counters and without; {of_pairs(counting)}",
        ["nginx", "TLS", "", "worker CPU, us", f"ratio ({INTERVAL})", "of all slices",
         "slices left out"],
        [[r["build"], r["tls"], r["sessions"], f"{r['us']:.1f}", between(r, "ratio"),
          between(r, "ratio_all"), f"{r['left_out']} of {r['slices']}"]
         for r in counting]) + doubts(counting) + "\n" + table(
        f"The page of {SHOWN} servers and 4 targets, by itself and while handshakes come at a rate, each "
        "of which is counted",
        ["nginx", "format", "handshakes/s", "scrapes", "bytes", "p50, us", "p99", "max",
         "worker CPU, us"],
        [[r["build"], r["format"], str(r["per_second"]), str(r["scrapes"]), f"{r['bytes']:,}",
          str(r["p50_us"]), str(r["p99_us"]), str(r["max_us"]),
          "-" if r["cpu_us"] is None else str(r["cpu_us"])] for r in scrapes])


def peers(results):
    return table(
        f"Other software beside this module, resumed handshakes; {of_pairs(results)}; \"to the module\" "
        "is the module's ratio to its base by the peer's to its own, below 1 where the module costs "
        "less",
        ["TLS", "clients", "sessions", "server", "worker CPU, us", "user", "kernel",
         f"fastest tenth, ratio to its base ({INTERVAL})", "all slices that were busy", "of all slices", "slices left out",
         f"to the module ({INTERVAL})", "handshakes/s", "worker busy", "p50, us",
         "store CPU, us", "lookups each"],
        [[r["tls"], str(r["clients"]), r["sessions"], r["server"], f"{r['us']:.1f}",
          f"{r['user_us']:.1f}", f"{r['kernel_us']:.1f}", between(r, "fast_ratio"), between(r, "ratio"),
          between(r, "ratio_all") if r["saturated"] else "-",
          f"{r['left_out']} of {r['slices']}" if r["saturated"] else "-",
          between(r, "module_ratio"), f"{r['rate']:.0f}", f"{r['busy'] * 100:.0f} %",
          f"{r['p50_us']:.0f}", f"{r['store_us']:.1f}" if r["store_us"] else "-",
          str(r.get("lookups", "-"))] for r in results]) + doubts(results)
