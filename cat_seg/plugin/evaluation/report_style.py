"""The looks of the report: one style sheet for light and dark, screens and paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --text: #1c2127; --faint: #66707c; --line: #e3e6ea;
  --track: #eceff3; --accent: #3b6fd4; --wrong: #cf5b3f; --better: #1d7f4f;
  --note: #fff6e0; --note-line: #e0a92e;
}
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171c; --card: #1d2128; --text: #e7eaee; --faint: #97a1ad; --line: #2d333c;
  --track: #2a3039; --accent: #79a6ff; --wrong: #ef8a6c; --better: #5cc996;
  --note: #332a14; --note-line: #c79a3a;
} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1160px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 0; letter-spacing: -.01em; }
h3 { font-size: .8rem; margin: 0 0 .8rem; color: var(--faint); font-weight: 600;
  text-transform: uppercase; letter-spacing: .06em; }
p { margin: .5rem 0; } a { color: inherit; text-decoration-color: var(--line); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere; }
.faint { color: var(--faint); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 1.25rem 1.4rem; margin: 1.25rem 0; overflow-x: auto; }
.note { background: var(--note); border-left: 4px solid var(--note-line); border-radius: 6px;
  padding: .5rem 1rem; margin: .8rem 0; overflow-wrap: anywhere; }
.note p { margin: .15rem 0; }
.badge { font-size: .75rem; font-weight: 600; background: var(--note); border-radius: 8px;
  border: 1px solid var(--note-line); padding: .05rem .5rem; display: inline-block; }
table { border-collapse: collapse; width: 100%; }
th { color: var(--faint); font-weight: 500; font-size: .82rem; text-align: right; }
th, td { padding: .38rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; } td { text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { white-space: normal; }
td.wide { width: 24%; min-width: 80px; }
svg { display: block; } .bullet { width: 100%; height: 14px; }
.track { fill: var(--track); } .fill { fill: var(--accent); } .tick { fill: var(--text); }
.loss { fill: var(--wrong); }
.up { color: var(--better); } .down { color: var(--wrong); }
section { margin-top: 3.5rem; }
.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .4rem 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: .9rem;
  margin: 1.1rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.25; letter-spacing: -.02em; }
.tile span { color: var(--faint); font-size: .82rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 0 1.25rem; align-items: start; }
.scroll { max-height: 30rem; overflow: auto; }
.scroll th { position: sticky; top: 0; background: var(--card); }
.skyline { width: 100%; height: 90px; margin-bottom: .8rem; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
  gap: 1.4rem 1.25rem; }
figure { margin: 0; } figcaption { margin-bottom: .45rem; overflow-wrap: anywhere; }
.strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px; }
.strip div { position: relative; }
.strip img { width: 100%; display: block; border-radius: 6px; }
.strip span { position: absolute; left: 5px; bottom: 5px; color: #fff; background: #000a;
  font-size: .7rem; line-height: 1.5; border-radius: 4px; padding: 0 .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem .8rem; font-size: .8rem; margin-top: .4rem; }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: 3px;
  margin-right: .35em; vertical-align: -.02em; }
@media print { .scroll { max-height: none; } section { break-before: page; } }
"""
