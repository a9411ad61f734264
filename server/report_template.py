"""The template of a run's report. A module, because an app of a bundle ships code and nothing else."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light">
<link rel="icon" href="data:,">
<title>isthmus run report: {{ run.name }}</title>
<style>
:root { --ink: #22303a; --soft: #55616a; --line: #dfe5e8; --good: #0b5f68; --good-wash: #eaf4f5; --bad: #8f2f0b; --bad-wash: #fcefe9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: .1rem 0 .9rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .8rem; padding-bottom: .35rem; border-bottom: 2px solid var(--ink); }
p { margin: .4rem 0 .8rem; max-width: 50rem; overflow-wrap: anywhere; }
.sub, .note, figcaption { color: var(--soft); }
.sub { margin: 0; }
.note, figcaption { font-size: .86rem; }
.status { border: 2px solid; border-left-width: .6rem; border-radius: .4rem; padding: .8rem 1.1rem; font-size: 1.15rem; font-weight: 700;
}
.status small { display: block; font-weight: 400; font-size: .92rem; color: var(--ink); }
.good { color: var(--good); background: var(--good-wash); }
.bad { color: var(--bad); background: var(--bad-wash); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); border: 1px solid var(--line); border-radius: .5rem;
margin: 1rem 0; }
.facts div { padding: .6rem .9rem; min-width: 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; border-bottom: 1.5px solid var(--soft); color: var(--soft); vertical-align: bottom; }
th:first-child, .text { text-align: left; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
figure { margin: .8rem 0 1rem; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; max-width: 40rem; }
code { font: .86em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@media print { @page { size: A4; margin: 14mm; } body { font-size: 9.5pt; } main { max-width: none; padding: 0;
} .scroll { overflow: visible; } }
</style>
</head>
<body>
<main>
<header>
<p class="sub">isthmus run report, made {{ report.generated_utc }}</p>
<h1>{{ run.name }}</h1>
<p class="status {{ "good" if run.state == "finished" and run.private else "bad" }}">{{ run.state }}, {{ run.rounds }} of {{
run.rounds_planned }} rounds{{ "" if run.private else ": NOT PRIVATE" }}<small>{{ "Everybody's share of the run is below." if run.state
== "finished" else "isthmus-server resume goes on from the last round that is shown here." }}{% if not run.private %} A test build:
nothing here is protected, and no epsilon is a guarantee.{% endif %}</small></p>
<dl class="facts">
<div><dt>epsilon of the run, each domain</dt><dd>{{ run.epsilon_target | number }}</dd></div>
<div><dt>delta</dt><dd>{{ "%g" | format(run.delta) }}</dd></div>
<div><dt>noise multiplier</dt><dd>{{ "%.4f" | format(run.noise_multiplier) }}</dd></div>
<div><dt>submitted</dt><dd>{{ run.attempts | length }} time{{ "s" if run.attempts | length != 1 }}</dd></div>
<div><dt>time in rounds</dt><dd>{{ run.seconds_in_rounds }} s</dd></div>
<div><dt>rounds in reserve</dt><dd>{{ run.reserve_rounds }}</dd></div>
</dl>
</header>

<section><h2>What was spent</h2>
<p>Epsilon for one user with all their interactions in a domain, over that domain's whole life, as its last receipt says. The partner's
ledger
decides; <code>isthmus-audit</code> checks it.</p>
<div class="scroll"><table>
<thead><tr><th>domain</th><th>epsilon</th><th>ceiling</th><th>debits</th><th>rounds answered</th><th class="text">refused</th>
<th class="text">final layer</th><th>KiB up</th><th>KiB down</th></tr></thead>
<tbody>{% for one in report.domains %}<tr><th>{{ one.domain }}</th>
<td>{% if one.events %}{{ one.epsilon | number }}{% else %}-{% endif %}</td><td>{{ one.ceiling | number }}</td><td>{{ one.events }}</td>
<td>{{ one.answered }}</td>
<td class="text">{% for code, count in one.refused.items() %}{{ count }} x
<code>{{ code }}</code>{{ ", " if not loop.last }}{% endfor %}{% if one.left_out %} left out:
<code>{{ one.left_out }}</code>{% endif %}</td>
<td class="text">{{ "not sent" if one.delivered is none else one.delivered }}</td>
<td>{{ (one.bytes.up / 1024) | round | int }}</td><td>{{ (one.bytes.down / 1024) | round | int }}</td></tr>{% endfor %}</tbody>
</table></div>
{% if report.for_k_domains %}
<div class="scroll"><table>
<caption>A person in k of these domains: composition over the k that spent most</caption>
<thead><tr><th>k</th>{% for _ in report.for_k_domains %}<th>{{ loop.index }}</th>{% endfor %}</tr></thead>
<tbody><tr><th>epsilon</th>{% for value in report.for_k_domains %}
<td>{{ "at least " if report.for_k_domains_at_least[loop.index0] }}{{ value | number }}</td>{% endfor %}</tr></tbody>
</table></div>
<p class="note">"At least" where receipts alone do not say what a ledger was spent on: it holds releases, or runs of several kinds. Give the
ledgers to <code>isthmus-audit recompute</code> for the number.</p>
{% endif %}
{% if chart %}<figure>{{ chart | safe }}<figcaption>Epsilon by round, each domain.</figcaption></figure>{% endif %}
</section>

<section><h2>What it brought</h2>
{% if report.utility %}<div class="scroll"><table>
<thead><tr><th>domain</th><th class="text">what</th><th class="text">values</th><th>noise (sd)</th><th>epsilon of this release</th>
</tr></thead>
<tbody>{% for one in report.utility %}<tr><th>{{ one.domain }}</th>
<td class="text">{{ one.purpose }}{{ "" if one.private else ", NOT PRIVATE" }}</td>
<td class="text">{% for name, value in one["values"].items() %}{{ name }} {{ "%.4g" | format(value) }}{{ ", " if not loop.last }}{%
endfor %}</td>
<td>{{ "%.3g" | format(one.noise_standard_deviation) }}</td><td>{{ one.epsilon_of_this_release | number }}</td></tr>{% endfor %}</tbody>
</table></div>{% else %}<p>No partner released a figure about its users. A partner may, with noise of its own and a debit of its own:
<code>isthmus-client release metric</code>.</p>{% endif %}
</section>

<section><h2>What went wrong</h2>
{% if report.incidents %}<div class="scroll"><table>
<thead><tr><th class="text">time (UTC)</th><th class="text">code</th><th class="text">what</th></tr></thead>
<tbody>{% for one in report.incidents %}<tr><td class="text">{{ one.time[:19] | replace("T", " ") }}</td>
<td class="text"><code>{{ one.code }}</code></td><td class="text">{{ one.what }}</td></tr>{% endfor %}</tbody>
</table></div><details><summary>What the codes mean</summary><pre>{{ codes }}</pre></details>{% else %}<p>Nothing: every partner answered
each question the first time.</p>{% endif %}
</section>

<section><h2>Rounds</h2>
<div class="scroll"><table>
<thead><tr><th>round</th><th>seconds</th><th class="text">answered</th><th class="text">refused</th><th>asked</th></tr></thead>
<tbody>{% for one in report.rounds %}<tr><th>{{ one.round }}</th><td>{{ "%.1f" | format(one.seconds) }}</td>
<td class="text">{{ one.replies | join(", ") }}</td>
<td class="text">{% for each in one.refused %}{{ each.domain }}: <code>{{ each.code }}</code>{{ ", " if not loop.last }}{% endfor %}</td>
<td>{{ one.attempts }}</td></tr>{% endfor %}</tbody>
</table></div></section>

<section><h2>To repeat it</h2>
<p>Run <code>{{ run.run_id or "not begun" }}</code>, configuration <code>{{ run.config_hash }}</code>, bundle
<code>{{ run.bundle_digest }}</code>,
final layer <code>{{ run.layer_sha256 or "none" }}</code>.</p></section>
</main>
</body>
</html>
"""
