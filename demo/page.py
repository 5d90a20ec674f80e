"""The report's page around its chart: one `string.Template` that refers to nothing outside itself."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Oxidize: $title</title>
<style>
  :root { --ink: #16202e; --soft: #5b6b80; --line: #e3e8ef; --paper: #ffffff; --ground: #f5f7fa;
          --good: #0f8a5f; --bad: #c92a3b; --warn: #b66a00; }
  * { box-sizing: border-box; }
  body { margin: 0; padding: 32px clamp(16px, 3vw, 48px) 40px; background: var(--ground); color: var(--ink);
         font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
  main { max-width: 1480px; margin: 0 auto; }
  h1 { margin: 0; font-size: 26px; font-weight: 650; letter-spacing: -0.01em; }
  .lead { margin: 4px 0 20px; color: var(--soft); }
  .badge { display: inline-block; margin-right: 12px; padding: 2px 12px; border-radius: 999px; color: #fff;
           font-size: 15px; font-weight: 600; vertical-align: 4px; background: var(--good); }
  .badge.failed { background: var(--bad); }
  .reasons { margin: 0 0 20px; padding: 12px 16px 12px 34px; border-radius: 10px; background: #fdecee;
             color: var(--bad); }
  .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(116px, 1fr)); gap: 12px; margin-bottom: 16px; }
  .tile, .card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; }
  .tile { padding: 12px 16px; }
  .tile b { display: block; font-size: 24px; font-weight: 620; font-variant-numeric: tabular-nums;
            letter-spacing: -0.01em; }
  .tile span { color: var(--soft); font-size: 13px; }
  .tile.bad b { color: var(--bad); }
  .card { padding: 16px 16px 8px; margin-bottom: 16px; overflow-x: auto; }
  .card h2 { margin: 0 0 2px 4px; font-size: 16px; font-weight: 620; }
  .card p { margin: 0 0 4px 4px; color: var(--soft); font-size: 13px; }
  table { width: 100%; border-collapse: collapse; margin-top: 8px; font-variant-numeric: tabular-nums; }
  th { padding: 6px 12px; text-align: left; color: var(--soft); font-size: 13px; font-weight: 500;
       white-space: nowrap; }
  td { padding: 7px 12px; border-top: 1px solid var(--line); }
  td.n, th.n { text-align: right; white-space: nowrap; }
  td.what { white-space: nowrap; font-weight: 550; }
  td.what i { display: inline-block; width: 10px; height: 10px; margin-right: 9px; border-radius: 3px; }
  td.detail { color: var(--soft); font-size: 13px; }
  footer { color: var(--soft); font-size: 13px; }
</style>
</head>
<body>
<main>
<h1><span class="badge $badge_class">$badge</span>$title</h1>
<p class="lead">$lead</p>
$reasons
<div class="tiles">$tiles</div>
<div class="card">
<h2>Latency of every reply</h2>
<p>One point for each of $points replies, in the colour of the process that gave it; a shaded band is a replacement
from its start to its end. The first reply of each client waited for its handshake.</p>
$chart
</div>
<div class="card">
<h2>What was done to the server</h2>
<table>
<thead><tr><th>what</th><th class="n">at</th><th class="n">took</th><th class="n">blackout</th>
<th class="n">longest silence</th><th class="n">lost</th><th>it said</th></tr></thead>
<tbody>$rows</tbody>
</table>
</div>
<footer>Everything but the blackout is computed from what the clients saw. The blackout, the longest time with no
reader, is the server's own figure; after a kill the holder's, from the signal until the new process was ready.
Oxidize $version.</footer>
</main>
</body>
</html>
"""
