"""The style sheet of the HTML report: light and dark, wide and narrow.

Holds: ``PAGE_CSS``, ``CHART_CSS``.
May import: nothing.
"""

PAGE_CSS = """
:root{color-scheme:light dark;--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"DejaVu Sans",sans-serif;--bg:#f7f6f2;--card:#fff;--ink:#1b1f26;--soft:#565d68;--rule:#e2e0d9;
--warn:#96470a;--c1:#1d5a9e;--c2:#0a7358;--c3:#a34712;--c4:#74409c;--c5:#9c2450;--c6:#5b6200;
--residual:#1b1f26;--fresh:#a34712;--shuffled:#74409c;--context:#9c2450}
@media (prefers-color-scheme:dark){:root{--bg:#13161b;--card:#1a1e25;--ink:#e8e8e4;--soft:#a8afba;
--rule:#303640;--warn:#f0a868;--c1:#7fb5f0;--c2:#5fcaa8;--c3:#f0a26c;--c4:#c3a0ea;--c5:#f08cae;
--c6:#c6cf62;--residual:#e8e8e4;--fresh:#f0a26c;
--shuffled:#c3a0ea;--context:#f08cae}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 var(--sans)}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 1.1rem;overflow-wrap:anywhere}
header{padding-top:2.2rem}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .4rem;font-weight:650}
h2{font-size:1.2rem;margin:0 0 .2rem;font-weight:650}
h3{font-size:.98rem;margin:1.1rem 0 .1rem;font-weight:650}
p{margin:.35rem 0;max-width:70ch}
.meta,.words,footer{color:var(--soft);font-size:.87rem}
.note{color:var(--warn);font-size:.87rem}
.cards{display:grid;gap:1.1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));
margin:1.1rem 0}
.plots{display:grid;gap:0 1.6rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;
padding:1.1rem 1.2rem;min-width:0;margin:1.1rem 0}
.cards .card{margin:0}
figure{margin:0;min-width:0}
ul{padding-left:1.1rem;margin:.4rem 0}
li{margin:.2rem 0}
.warnings{font-size:.87rem}
code{font:.92em/1.4 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.box{overflow:auto;max-height:34rem;border:1px solid var(--rule);border-radius:8px;
margin:.5rem 0 1.1rem;overflow-wrap:normal}
.box:focus-visible{outline:2px solid var(--c1)}
table{border-collapse:collapse;font-size:.84rem;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .65rem;text-align:left;border-bottom:1px solid var(--rule);white-space:nowrap;
vertical-align:top}
th{position:sticky;top:0;background:var(--card);font-weight:600;color:var(--soft)}
td.n,th.n{text-align:right}
td.w{white-space:normal;min-width:16rem;max-width:30rem;overflow-wrap:anywhere}
details{grid-column:1/-1;margin:.5rem 0;min-width:0}
summary{cursor:pointer;font-size:.9rem;color:var(--soft);padding:.25rem 0}
summary:hover{color:var(--ink)}
.figure{font-size:.9rem}
.panels{display:grid;gap:.6rem 1rem;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));
margin:.4rem 0 1rem}
.panels.wide{grid-template-columns:repeat(auto-fill,minmax(min(200px,45%),1fr))}
.guide{columns:2 22rem;column-gap:1.6rem;margin:.4rem 0 0}
.guide div{break-inside:avoid;margin:0 0 .6rem}
dt{font-weight:600;color:var(--ink)}
dd{margin:0}
.panels code{font-size:.78rem;color:var(--soft);overflow-wrap:anywhere}
footer{padding-bottom:2.5rem}
"""

CHART_CSS = """
svg.plot{display:block;width:100%;max-width:680px;height:auto;overflow:hidden}
svg.plot text{font:12px/1 var(--sans);fill:var(--soft)}
svg.plot text.na{fill:var(--c);text-anchor:middle}
svg.plane{max-width:400px;margin:0 auto}
.grid{stroke:var(--rule);stroke-width:1}
.base{stroke:var(--soft);stroke-width:1.2}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.dashed .line{stroke-width:1.6;stroke-dasharray:6 4}
.whisker{stroke:var(--c);stroke-width:1.4}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1}
.curve .line{stroke-width:1.8}
.band{fill:var(--c);opacity:.17;stroke:none}
.faint .line{stroke-width:1.1;opacity:.45}
.faint .dot{display:none}
.level{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:2 3}
.rug{stroke:var(--c1);stroke-width:1;fill:none}
.dotted .line{stroke-width:1.7;stroke-dasharray:1.5 3.5;stroke-linecap:round}
svg.small text{font-size:13px}
.hollow .dot{fill:var(--card);stroke:var(--c);stroke-width:1.6}
.dashed .dot,.dotted .dot{r:2px;stroke:none}
.hit{fill:transparent}
.out{fill:var(--c)}
.hollow .out,.out.open{fill:var(--card);stroke:var(--c);stroke-width:1.4}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.4rem 0;padding:0;list-style:none;
font-size:.82rem;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:.4rem;min-width:0;overflow-wrap:anywhere}
.legend svg{flex:none}
@media (max-width:560px){svg.plot text{font-size:18px}svg.small text{font-size:14px}}
"""
