// The viewer of tl_sparse: one or two circuits, drawn, with all that was measured of them.
// Texts from data reach the page as text nodes and attributes only, never as HTML.
(() => {
"use strict";
const pristine = document.documentElement.outerHTML; // for "save page", before anything changes
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
const header = document.getElementById("top");
const state = {scene: 0, width: "worth", prompt: 0, query: null, side: "prompts"};
const SITES = {attn_in: "attention reads", q: "query", k: "key", v: "value",
  attn_out: "attention writes", mlp_in: "MLP reads", mlp_neuron: "neuron", mlp_out: "MLP writes",
  final_in: "the unembedding reads"};
const SIGNS = {holds: "✓", fails: "✗", "not tested": "○"};

// -- small things ------------------------------------------------------------------------------

function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

function svg(tag, props = {}, ...children) {
  const space = document.querySelector("svg").namespaceURI;
  return fill(document.createElementNS(space, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    } else if (name === "vars") {
      for (const [key, x] of Object.entries(value)) node.style.setProperty(key, x);
    } else {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
  return node;
}

function say(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  const text = size >= 1e4 || (size > 0 && size < 1e-3) ? size.toExponential(1)
    : String(Number(size.toPrecision(digits)));
  return (x < 0 ? "−" : "") + text;
}

const signed = (x) => (x === null || x === undefined ? "–" : (x >= 0 ? "+" : "") + say(x));
const clip = (text, n) => ([...text].length > n ? [...text].slice(0, n - 1).join("") + "…" : text);

function table(head, rows) {
  return el("div", {class: "wide", tabindex: 0}, el("table", {},
    el("thead", {}, el("tr", {}, head.map((h) => el("th", {scope: "col"}, h)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

function download(name, type, text) {
  const link = el("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// -- scenes ------------------------------------------------------------------------------------

const scenes = data.scenes.map((about, place) => {
  const section = document.querySelector(`[data-scene="${place}"]`);
  const scene = {place, about, section, stage: section.querySelector(".stage"),
    drawing: section.querySelector("svg.circuit"), size: about.sizes.length - 1, chosen: null,
    zoom: null, nodes: new Map(), into: new Map(), out: new Map(), boxes: new Map(), links: [],
    labels: {...about.labels}, groups: {...about.groups}};
  about.nodes.forEach((node) => {
    scene.nodes.set(node.id, node);
    scene.into.set(node.id, []);
    scene.out.set(node.id, []);
  });
  about.edges.forEach((edge) => {
    edge.id = `${edge.source}>${edge.target}`;
    scene.into.get(edge.target).push(edge);
    scene.out.get(edge.source).push(edge);
  });
  for (const side of [scene.into, scene.out]) {
    for (const edges of side.values()) edges.sort((a, b) => b.worth - a.worth);
  }
  const edges = new Map(about.edges.map((edge) => [edge.id, edge]));
  scene.drawing?.querySelectorAll("[data-box]").forEach((g) => scene.boxes.set(g.dataset.box, g));
  scene.drawing?.querySelectorAll("path[data-source]").forEach((path) => {
    const {source, target} = path.dataset;
    const edge = path.classList.contains("edge") ? edges.get(`${source}>${target}`) : null;
    scene.links.push({path, source, target, edge, width: path.getAttribute("stroke-width")});
  });
  return scene;
});

const current = () => scenes[state.scene];
const key = (scene) => `tl_sparse:${scene.about.key}`;

function name(scene, id) {
  const node = scene.nodes.get(id);
  if (!node) return id;
  let text = `${SITES[node.site]} ${node.site === "mlp_neuron" ? "" : "channel "}${node.channel}`;
  if (["q", "k", "v"].includes(node.site)) {
    text = `head ${node.head} ${node.site}${node.channel - node.head * scene.about.d_head}`;
  } else if (node.position_channel !== null && node.position_channel !== undefined) {
    text = `${SITES[node.site]} position channel ${node.position_channel}`;
  }
  return `layer ${node.layer} ${text}`;
}

function called(scene, id) {
  return scene.labels[id] ? `${scene.labels[id]} (${name(scene, id)})` : name(scene, id);
}

// -- labels: in the browser's store under the circuit's hash, and in what is saved ---------------

function remember(scene) {
  try {
    localStorage.setItem(key(scene), JSON.stringify({labels: scene.labels, groups: scene.groups}));
  } catch {
    header.querySelector("#kept").hidden = false;
  }
}

function recall(scene) {
  try {
    const kept = JSON.parse(localStorage.getItem(key(scene)) ?? "null");
    if (!kept) return;
    for (const what of ["labels", "groups"]) {
      scene[what] = {};
      for (const [id, text] of Object.entries(kept[what] ?? {})) {
        if (scene.nodes.has(id) && typeof text === "string") scene[what][id] = text;
      }
    }
  } catch { /* what is there is not ours */ }
}

function write(scene, what, id, text) {
  if (text.trim()) scene[what][id] = text;
  else delete scene[what][id];
  remember(scene);
  drawLabels(scene);
}

function withNames(scene) {
  const circuit = {...scene.about.circuit};
  for (const what of ["labels", "groups"]) {
    delete circuit[what];
    if (Object.keys(scene[what]).length) circuit[what] = scene[what];
  }
  return circuit;
}

function exportCircuit() {
  const scene = current();
  download(`${scene.about.task}.json`, "application/json",
    JSON.stringify(withNames(scene), null, 1));
}

function savePage() {
  const now = {scenes: scenes.map((scene) => ({...scene.about, labels: scene.labels,
    groups: scene.groups, circuit: withNames(scene)}))};
  const text = JSON.stringify(now).replace(/[<>&]/g,
    (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  const open = "<" + 'script type="application/json" id="data">';
  const start = pristine.indexOf(open) + open.length;
  const stop = pristine.indexOf("</" + "script>", start);
  download(`${current().about.task}.html`, "text/html",
    `<!DOCTYPE html>\n${pristine.slice(0, start)}${text}${pristine.slice(stop)}`);
}

// -- the drawing -------------------------------------------------------------------------------

function groupsOf(scene) {
  return [...new Set(Object.values(scene.groups))].sort();
}

function drawLabels(scene) {
  const groups = groupsOf(scene);
  scene.boxes.forEach((box, id) => {
    box.querySelectorAll(".label,.group").forEach((old) => old.remove());
    const rect = box.querySelector("rect");
    if (!rect || !scene.nodes.has(id)) return;
    const [x, y, w] = ["x", "y", "width"].map((n) => Number(rect.getAttribute(n)));
    if (scene.labels[id]) {
      box.append(svg("text", {class: "label", x: x + w / 2, y: y - 4}, clip(scene.labels[id], 28)));
    }
    if (scene.groups[id]) {
      const c = groups.indexOf(scene.groups[id]) % 6;
      box.append(svg("circle", {class: `group c${c}`, cx: x, cy: y + 4, r: 5},
        svg("title", {}, scene.groups[id])));
    }
    box.setAttribute("aria-label", called(scene, id));
  });
}

function shownNodes(scene) {
  if (scene.size >= scene.about.sizes.length - 1) return new Set(scene.nodes.keys());
  const shown = new Set();
  scene.about.edges.forEach((edge) => {
    if (edge.enters <= scene.size) shown.add(edge.source).add(edge.target);
  });
  return shown;
}

function drawScene(scene) {
  const shown = shownNodes(scene);
  const end = (id) => !scene.nodes.has(id) || shown.has(id);
  const largest = (of) => Math.max(1e-12, ...scene.about.edges.map((e) => Math.abs(e[of])));
  const most = largest(state.width);
  const chosen = scene.chosen;
  const near = new Set(chosen ? [chosen] : []);
  const reached = new Set();
  for (const link of scene.links) {
    const gone = link.edge ? link.edge.enters > scene.size : !(end(link.source) && end(link.target));
    link.path.classList.toggle("gone", gone);
    if (!gone) reached.add(link.source).add(link.target);
    if (link.edge) {
      const size = state.width === "worth" ? Math.max(0, link.edge.worth) : Math.abs(link.edge.weight);
      link.path.setAttribute("stroke-width", (0.8 + 5.2 * size / most).toFixed(2));
    }
    const on = chosen && !gone && (link.source === chosen || link.target === chosen
      || link.edge?.id === chosen);
    if (on) near.add(link.source).add(link.target);
    link.path.classList.toggle("on", Boolean(on));
  }
  const heaviest = Math.max(1e-12, ...scene.about.nodes.map((n) => n.worth));
  scene.boxes.forEach((box, id) => {
    const node = scene.nodes.get(id);
    box.classList.toggle("gone", node ? !shown.has(id) : !reached.has(id));
    box.classList.toggle("on", near.has(id));
    box.classList.toggle("chosen", id === chosen);
    if (node) {
      box.setAttribute("aria-pressed", String(id === chosen));
      box.querySelector("rect").style.strokeWidth = (1 + 3 * Math.max(0, node.worth) / heaviest).toFixed(2);
    }
  });
  scene.drawing?.classList.toggle("dim", Boolean(chosen));
  scene.section.classList.toggle("active", scenes.length > 1 && scene.place === state.scene);
}

function choose(scene, id, focus = false) {
  state.scene = scene.place;
  scene.chosen = id;
  state.query = null;
  scenes.forEach((each) => {
    if (each !== scene && id && each.about.model === scene.about.model && each.nodes.has(id)) each.chosen = id;
    else if (each !== scene && scenes.length > 1) each.chosen = null;
  });
  scenes.forEach(drawScene);
  drawPanel();
  const box = id && scene.boxes.get(id);
  if (box && focus) box.focus();
}

function zoomTo(scene, share) {
  if (!scene.drawing) return;
  const {width, height} = scene.drawing.viewBox.baseVal;
  scene.zoom = Math.min(4, Math.max(0.05, share));
  scene.drawing.style.minWidth = "0";
  scene.drawing.style.width = `${width * scene.zoom}px`;
  scene.drawing.style.height = `${height * scene.zoom}px`;
}

function fit(scene, least = 0) {
  if (!scene.drawing) return;
  const {width, height} = scene.drawing.viewBox.baseVal, box = scene.stage;
  const share = Math.min(1, (box.clientWidth - 28) / width, least ? 1 : (box.clientHeight - 28) / height);
  zoomTo(scene, Math.max(least, share));
}

function zoom(factor) {
  const scene = current();
  if (factor === 0) fit(scene);
  else zoomTo(scene, scene.zoom * factor);
}

// -- the card under the pointer ----------------------------------------------------------------

const card = el("div", {id: "card", role: "tooltip", hidden: true});

function showCard(scene, target, event) {
  const g = target.closest?.("[data-box]");
  const path = target.closest?.("path[data-source]");
  const node = g && scene.nodes.get(g.dataset.box);
  const link = path && scene.links.find((each) => each.path === path);
  const lines = [];
  if (node) {
    lines.push(el("strong", {}, called(scene, node.id)),
      el("div", {}, `without it the loss rises by ${say(node.worth)} nats`),
      el("div", {}, `weights: ${scene.into.get(node.id).length} in, ${scene.out.get(node.id).length} out`));
  } else if (link?.edge) {
    lines.push(el("strong", {}, `weight ${signed(link.edge.weight)}`),
      el("div", {}, `${called(scene, link.source)} → ${called(scene, link.target)}`),
      el("div", {}, `without it the loss rises by ${say(link.edge.worth)} nats`));
  }
  card.hidden = !lines.length;
  card.replaceChildren(...lines);
  const x = Math.min(event.clientX + 14, document.documentElement.clientWidth - card.offsetWidth - 8);
  card.style.left = `${Math.max(4, x)}px`;
  card.style.top = `${event.clientY + 16}px`;
  scene.links.forEach((each) => each.path.classList.toggle("hover",
    Boolean(node && (each.source === node.id || each.target === node.id))));
}

// -- texts with shaded tokens ------------------------------------------------------------------

function token(text, value, scale, props = {}) {
  const share = scale ? Math.abs(value) / scale : 0;
  return el("span", {class: `token ${value < 0 ? "negative" : "positive"}`,
    vars: {"--share": `${Math.round(85 * Math.min(1, share))}%`}, ...props}, text);
}

function line(scene, tokens, values, scale, at = null) {
  return el("div", {class: "line", tabindex: 0}, tokens.map((place, i) => {
    const value = values[i] * scale / 127;
    return token(scene.about.texts[place], value, scale,
      {title: say(value), ...(i === at ? {"data-peak": true} : {})});
  }));
}

function pairsOf(scene, node) {
  const {prompts} = scene.about;
  const blocks = [];
  for (let i = 0; i + 1 < prompts.length; i += 2) {
    const [a, b] = [prompts[i], prompts[i + 1]];
    const [x, y] = [node.prompts[i], node.prompts[i + 1]];
    const aligned = a.tokens.length === b.tokens.length;
    const gap = aligned ? x.values.map((v, j) => v - y.values[j]) : null;
    blocks.push(el("div", {class: "pair"},
      el("div", {}, el("h4", {}, `answer ${a.answer}`), line(scene, a.tokens, x.values, x.scale)),
      el("div", {}, el("h4", {}, `answer ${b.answer}`), line(scene, b.tokens, y.values, y.scale)),
      el("div", {}, el("h4", {}, "difference"), aligned
        ? line(scene, a.tokens, gap, x.scale)
        : el("p", {class: "soft"}, `at the last token ${signed((x.values.at(-1) - y.values.at(-1)) * x.scale / 127)}`))));
  }
  return blocks;
}

// -- the panel ---------------------------------------------------------------------------------

function link(scene, id) {
  return el("button", {class: "node", type: "button", on: {click: () => choose(scene, id, true)}},
    called(scene, id));
}

function fact(what, value) {
  return el("div", {}, el("dt", {}, what), el("dd", {}, value));
}

function weights(scene, title, edges, end) {
  if (!edges.length) return null;
  return [el("h3", {}, title), table(["node", "weight", "worth (nats)"],
    edges.map((edge) => [link(scene, edge[end]), signed(edge.weight), say(edge.worth)]))];
}

function tokensOf(title, some) {
  if (!some?.length) return null;
  return [el("h3", {}, title), el("ul", {class: "tokens"},
    some.map(([text, weight]) => el("li", {}, el("code", {}, text), ` ${signed(weight)}`)))];
}

function nodePanel(scene, node) {
  const reads = ["attn_in", "mlp_in"].includes(node.site);
  const field = (what, label, list) => el("label", {}, label, el("input", {
    id: `${what}-of-node`, value: scene[what][node.id] ?? "", maxlength: 100000, list,
    on: {input: (event) => write(scene, what, node.id, event.target.value)}}));
  const text = node.examples;
  const shown = state.side === "text" && text ? [
    el("h4", {}, "highest"), text.highest.map((e) => line(scene, e.tokens, e.values, e.scale, e.at)),
    el("h4", {}, "lowest"), text.lowest.map((e) => line(scene, e.tokens, e.values, e.scale, e.at))]
    : pairsOf(scene, node);
  const tab = (side, label) => el("button", {type: "button", "aria-pressed": String(state.side === side),
    on: {click: () => { state.side = side; drawPanel(); }}}, label);
  return [
    el("h2", {}, name(scene, node.id)),
    el("p", {class: "soft"}, `${node.id}; `, scene.about.ablation.startsWith("resample")
      ? "outside the circuit it takes its value on another prompt"
      : `outside the circuit it is held at ${say(node.reference)}`),
    el("div", {class: "names"}, field("labels", "label"), field("groups", "group", "groups"),
      el("datalist", {id: "groups"}, groupsOf(scene).map((g) => el("option", {value: g})))),
    el("dl", {}, fact("worth to the circuit (nats)", say(node.worth)),
      fact("worth to the whole model (nats)", say(node.worth_in_model)),
      reads ? fact("gain of the norm", say(node.gain)) : fact("bias", say(node.bias)),
      reads ? null : fact("from what is held", say(node.constant))),
    weights(scene, "weights in", scene.into.get(node.id), "source"),
    node.written_by.length ? [el("h3", {}, "its channel is written before by"),
      el("p", {}, node.written_by.map((id) => link(scene, id)))] : null,
    weights(scene, "weights out", scene.out.get(node.id), "target"),
    node.read_by.length ? [el("h3", {}, "its channel is read again by"),
      el("p", {}, node.read_by.map((id) => link(scene, id)))] : null,
    tokensOf("tokens that decide the task, as they stand in its channel",
      node.task_tokens.filter(([, w]) => w)),
    tokensOf(`tokens that write into it (${node.n_tokens} do)`, reads ? [...node.highest, ...node.lowest] : []),
    tokensOf("answers that read it", node.logits.filter(([, w]) => w)),
    tokensOf("logits it raises and lowers most", [...node.raises, ...node.lowers]),
    el("h3", {}, "What it does"),
    el("div", {class: "tabs", role: "group"}, tab("prompts", "on the task's prompts"),
      text ? tab("text", "on text") : null),
    el("p", {class: "soft"}, state.side === "text" && text
      ? "Where the whole model has it highest and lowest in validation text."
      : scene.about.ablation.startsWith("resample") ? "In the whole model." : "While the circuit runs alone."),
    shown,
    patternPanel(scene, node.head),
  ];
}

function edgePanel(scene, edge) {
  return [el("h2", {}, `weight ${signed(edge.weight)}`),
    el("p", {}, link(scene, edge.source), " → ", link(scene, edge.target)),
    el("dl", {}, fact("worth to the circuit (nats)", say(edge.worth)),
      fact("smallest size that has it (edges)", say(scene.about.sizes[edge.enters]?.[0])))];
}

function patternPanel(scene, head = null) {
  const some = scene.about.patterns.filter((p) => head === null || (p.head === head
    && scene.nodes.get(scene.chosen)?.layer === p.layer));
  if (!some.length) return null;
  const prompts = scene.about.prompts;
  const tokens = prompts[state.prompt].tokens.map((place) => scene.about.texts[place]);
  const query = Math.min(state.query ?? tokens.length - 1, tokens.length - 1);
  const pick = el("select", {id: "prompt", on: {change: (event) => {
    state.prompt = Number(event.target.value); state.query = null; drawPanel();
  }}}, prompts.map((prompt, i) => el("option", {value: i, selected: i === state.prompt},
    `prompt ${i + 1}, answer ${prompt.answer}`)));
  return [el("h3", {}, "Where heads look"),
    el("p", {class: "soft"}, "Click a token to see where it looks from there; a head's q and k are ",
      "in the circuit or held."), pick,
    some.map((p) => {
      const flat = p.patterns[state.prompt], start = query * (query + 1) / 2;
      const row = flat.slice(start, start + query + 1);
      const rest = 100 - row.reduce((a, b) => a + b, 0);
      return el("div", {class: "pattern"}, el("h4", {}, `layer ${p.layer} head ${p.head}`,
        rest > 2 ? ` (${rest} % to the sink)` : ""),
        el("div", {class: "line"}, tokens.map((text, i) => token(text, row[i] ?? 0, 100, {
          role: "button", tabindex: 0, title: i <= query ? `${row[i]} %` : "", ...(i === query ? {"data-peak": true} : {}),
          on: {click: () => { state.query = i; drawPanel(); }}}))),
        matrix(flat, tokens.length, query));
    })];
}

function matrix(flat, n, query) {
  const cells = [];
  for (let i = 0, k = 0; i < n; i++) {
    for (let j = 0; j <= i; j++, k++) {
      if (flat[k] > 0) cells.push(svg("rect", {x: j, y: i, width: 1, height: 1, "fill-opacity": flat[k] / 100}));
    }
  }
  return svg("svg", {class: "matrix", viewBox: `0 0 ${n} ${n}`, role: "img",
    "aria-label": "attention pattern, a row for each query position"},
    svg("path", {d: `M0,0L${n},${n}H0Z`}), cells,
    svg("rect", {class: "query", x: 0, y: query, width: query + 1, height: 1}));
}

function curve(scene) {
  const {sizes, tried, losses, target} = scene.about;
  const all = [...sizes, ...tried].filter(([, loss]) => loss !== null);
  const most = Math.max(2, ...all.map(([n]) => n));
  const top = Math.max(losses.empty ?? 0, ...sizes.map(([, loss]) => loss ?? 0)) * 1.05 || 1;
  const x = (n) => 34 + 300 * Math.log1p(n) / Math.log1p(most);
  const y = (loss) => 140 - 126 * Math.min(loss, top) / top;
  const [n, loss] = sizes[scene.size];
  const ticks = [0, 1, 10, 100, 1000, 10000].filter((t) => t <= most);
  return svg("svg", {class: "curve", viewBox: "0 0 344 166", role: "img", "aria-label": "loss against edges"},
    ticks.map((t) => svg("text", {x: x(t), y: 154}, String(t))),
    [0, top / 2, top].map((t) => svg("text", {class: "end", x: 30, y: y(t) + 4}, t.toFixed(2))),
    svg("text", {x: 184, y: 165}, "edges"),
    target !== null ? svg("path", {class: "target", d: `M34,${y(target)}H334`}, svg("title", {}, `target ${say(target)}`)) : null,
    svg("path", {class: "whole", d: `M34,${y(losses.whole)}H334`}, svg("title", {}, `whole model ${say(losses.whole)}`)),
    tried.filter(([, t]) => t !== null).map(([m, t]) => svg("circle", {class: "tried", cx: x(m), cy: y(t), r: 2.2},
      svg("title", {}, `pruning tried ${m} edges: ${say(t)}`))),
    svg("path", {class: "sizes", d: "M" + sizes.map(([m, t]) => `${x(m)},${y(t)}`).join("L")}),
    svg("circle", {class: "now", cx: x(n), cy: y(loss), r: 5}));
}

function setSize(scene, size) {
  scene.size = Math.min(Math.max(0, size), scene.about.sizes.length - 1);
  drawScene(scene);
  const place = panel.querySelector("#sizes");
  if (place) place.replaceWith(sizePanel(scene));
}

function sizePanel(scene) {
  const [n, loss] = scene.about.sizes[scene.size];
  const slider = el("input", {id: "size", type: "range", min: 0, max: scene.about.sizes.length - 1,
    value: scene.size, "aria-label": "size of the circuit", "aria-valuetext": `${n} edges`,
    on: {input: (event) => { setSize(scene, Number(event.target.value)); panel.querySelector("#size").focus(); }}});
  return el("div", {id: "sizes", class: "block"}, el("h3", {}, "Size"), slider,
    el("p", {}, el("output", {id: "size-says"}, `${n} edges: loss ${say(loss)} nats`)), curve(scene),
    el("p", {class: "soft"}, "Edges leave in the order of what each is worth alone. Dashed: the target; dotted: the ",
      "whole model; dots: what pruning tried."));
}

function auditPanel(scene) {
  const {audit} = scene.about;
  if (!audit) {
    return el("p", {class: "warning", role: "note"}, scene.about.not_audited);
  }
  return [el("h3", {}, "Audit"), el("div", {class: "audit"}, audit.verdicts.map((v) =>
    el("details", {class: v.verdict.replace(" ", "-")},
      el("summary", {}, el("span", {class: "verdict"}, `${SIGNS[v.verdict]} ${v.verdict}`), ` ${v.claim}. ${v.says}`),
      el("ul", {}, v.lines.map((text) => el("li", {}, text))))))];
}

function overview(scene) {
  const {about} = scene;
  const others = scenes.length > 1 ? table(["", ...scenes.map((s) => s.about.title)], [
    ["nodes", ...scenes.map((s) => String(s.about.nodes.length))],
    ["edges", ...scenes.map((s) => String(s.about.edges.length))],
    ["loss alone (nats)", ...scenes.map((s) => say(s.about.losses.circuit))],
    ["loss of the whole model", ...scenes.map((s) => say(s.about.losses.whole))],
    ["claims that hold", ...scenes.map((s) => (s.about.audit ? String(s.about.audit.verdicts.filter((v) => v.verdict === "holds").length) : "not audited"))],
    ...(scenes[0].about.model === scenes[1].about.model ? [["edges in both", ...scenes.map(() => String(shared()))]] : []),
  ]) : null;
  const groups = groupsOf(scene);
  const block = (...parts) => el("div", {class: "block"}, parts);
  return [
    block(el("h2", {}, about.title), others,
      el("p", {}, `${about.nodes.length} nodes and ${about.edges.length} weights between them answer `,
        about.answers.length ? about.answers.map((a, i) => [i ? " or " : "", el("code", {}, a)]) : about.task,
        `. With all else held, the loss is ${say(about.losses.circuit)} nats; of the whole model ${say(about.losses.whole)}, `,
        `of no node at all ${say(about.losses.empty)}.`),
      el("p", {class: "soft"}, "Follow the drawing from the left, where tokens come in, to the answers at the right. ",
        "Click a node or a line; arrow keys go on from there; ? lists the keys.")),
    sizePanel(scene),
    block(auditPanel(scene)),
    groups.length ? block(el("h3", {}, "Groups"), el("ul", {}, groups.map((g, i) => el("li", {},
      el("span", {class: `swatch c${i % 6}`}), `${g}: `,
      Object.keys(scene.groups).filter((id) => scene.groups[id] === g).map((id) => link(scene, id)))))) : null,
    block(el("h3", {}, "Prompts"),
      el("div", {class: "prompts"}, about.prompts.map((prompt) => el("div", {class: "line", tabindex: 0},
        prompt.tokens.map((place) => el("span", {class: "token"}, about.texts[place])),
        el("span", {class: "soft"}, ` ${prompt.answer} over ${prompt.wrong} by ${signed(prompt.margin)}, whole model ${signed(prompt.margin_in_model)}`))))),
    block(patternPanel(scene)),
    block(el("h3", {}, "Beside the circuit"),
      el("ul", {}, about.notes.map((note) => el("li", {}, note)),
        el("li", {}, `${about.n_interface.toLocaleString("en")} embedding and unembedding weights touch it, and ${about.n_biases} biases are in it; they are not edges.`))),
  ];
}

function shared() {
  const mine = new Set(scenes[0].about.edges.map((e) => e.id));
  return scenes[1].about.edges.filter((e) => mine.has(e.id)).length;
}

function drawPanel() {
  const scene = current(), {chosen} = scene;
  const node = chosen && scene.nodes.get(chosen);
  const edge = chosen && scene.about.edges.find((e) => e.id === chosen);
  const back = node || edge ? el("button", {type: "button", class: "back", on: {click: () => choose(scene, null)}}, "← overview") : null;
  const parts = node ? nodePanel(scene, node) : edge ? edgePanel(scene, edge) : overview(scene);
  panel.replaceChildren(el("div", {class: "inner"}, back, parts));
  panel.scrollTop = 0;
}

// -- the bar at the top ------------------------------------------------------------------------

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

const KEYS = [["Tab, click", "choose a node"], ["← →", "the most needed node before, or after"],
  ["↑ ↓", "the node above, or below"], ["[ ]", "a smaller, or larger circuit"], ["+ − 0", "zoom, and fit"],
  ["w", "lines as wide as their worth, or their weight"], ["l", "label the node"], ["t", "dark or light"],
  ["e", "export the circuit with its labels"], ["s", "save this page with its labels"], ["Esc", "back to the overview"]];

const help = el("dialog", {id: "help"}, el("h2", {}, "Keys"),
  el("dl", {}, KEYS.map(([k, what]) => fact(k, what))),
  el("form", {method: "dialog"}, el("button", {}, "close")));

function setWidth() {
  state.width = state.width === "worth" ? "weight" : "worth";
  header.querySelector("#width").textContent = `lines: ${state.width}`;
  scenes.forEach(drawScene);
}

function drawHeader() {
  const button = (id, text, title, act) => el("button", {id, type: "button", title, on: {click: act}}, text);
  const chips = scenes.map((scene) => el("p", {class: "chips"},
    scenes.length > 1 ? el("strong", {}, `${scene.about.title}: `) : null,
    scene.about.audit
      ? scene.about.audit.verdicts.map((v) => el("span", {class: `chip ${v.verdict.replace(" ", "-")}`, title: v.says}, `${SIGNS[v.verdict]} ${v.claim}`))
      : el("span", {class: "chip fails"}, "not audited")));
  header.append(...chips, el("div", {class: "tools", role: "toolbar", "aria-label": "view"},
    button("smaller", "−", "zoom out (-)", () => zoom(0.8)), button("fit", "fit", "fit (0)", () => zoom(0)),
    button("larger", "+", "zoom in (+)", () => zoom(1.25)),
    button("width", `lines: ${state.width}`, "what the width of lines says (w)", setWidth),
    button("theme", "dark / light", "dark or light (t)", theme),
    button("export", "export JSON", "the circuit with labels and groups (e)", exportCircuit),
    button("save", "save page", "this page with labels and groups (s)", savePage),
    button("keys", "?", "keys (?)", () => help.showModal())),
    el("p", {id: "kept", class: "soft", hidden: true}, "This browser keeps nothing for this page: save it to keep the labels."),
    el("ul", {class: "legend"}, ["positive", "negative", "residual", "look"].map((kind) => el("li", {},
      svg("svg", {class: "circuit", viewBox: "0 0 34 10", width: 34, height: 10}, svg("path", {class: kind, "stroke-width": 3, d: "M1,5H33"})),
      {positive: "positive weight", negative: "negative weight", residual: "same channel of the residual stream",
        look: "q and k choose where v is taken from"}[kind]))));
}

// -- keys and clicks ---------------------------------------------------------------------------

function step(direction) {
  const scene = current(), id = scene.chosen;
  if (!id || !scene.nodes.has(id)) return choose(scene, scene.about.nodes[0].id, true);
  const shown = shownNodes(scene);
  if (direction === "left" || direction === "right") {
    const [edges, end, other, mine] = direction === "left"
      ? [scene.into, "source", "source", "target"] : [scene.out, "target", "target", "source"];
    const edge = edges.get(id).find((e) => shown.has(e[end]));
    const next = edge ? edge[end] : scene.links.find((l) => l[mine] === id && shown.has(l[other]))?.[other];
    return next ? choose(scene, next, true) : undefined;
  }
  const at = (box) => box.querySelector("rect").getBBox();
  const here = at(scene.boxes.get(id)), sign = direction === "up" ? -1 : 1;
  const next = [...scene.boxes].filter(([other]) => shown.has(other) && other !== id)
    .map(([other, box]) => [other, at(box)])
    .filter(([, box]) => Math.abs(box.x + box.width / 2 - here.x - here.width / 2) < 30 && sign * (box.y - here.y) > 0)
    .sort((a, b) => sign * (a[1].y - b[1].y))[0];
  return next ? choose(scene, next[0], true) : undefined;
}

const ACTS = {ArrowLeft: () => step("left"), ArrowRight: () => step("right"), ArrowUp: () => step("up"),
  ArrowDown: () => step("down"), "[": () => setSize(current(), current().size - 1),
  "]": () => setSize(current(), current().size + 1), "+": () => zoom(1.25), "=": () => zoom(1.25),
  "-": () => zoom(0.8), 0: () => zoom(0), w: setWidth, t: theme, e: exportCircuit, s: savePage,
  l: () => panel.querySelector("#labels-of-node")?.focus(), "?": () => help.showModal(),
  Escape: () => choose(current(), null)};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches?.("input:not([type=range]), select, textarea");
  if (event.target.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
  if (typing && event.key !== "Escape") return;
  if (typing) event.target.blur();
  const act = ACTS[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

scenes.forEach((scene) => {
  recall(scene);
  scene.drawing?.setAttribute("role", "group");
  scene.boxes.forEach((box, id) => {
    if (!scene.nodes.has(id)) return;
    box.setAttribute("tabindex", "0");
    box.setAttribute("role", "button");
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(scene, id);
      }
    });
  });
  scene.stage.addEventListener("click", (event) => {
    const box = event.target.closest("[data-box]"), path = event.target.closest("path[data-source]");
    const found = path && scene.links.find((each) => each.path === path);
    if (box && scene.nodes.has(box.dataset.box)) choose(scene, box.dataset.box);
    else if (box) choose(scene, scene.links.find((l) => l.source === box.dataset.box || l.target === box.dataset.box && scene.nodes.has(l.source))?.[box.dataset.box.startsWith("tokens.") ? "target" : "source"] ?? null);
    else if (found?.edge) choose(scene, found.edge.id);
    else choose(scene, null);
  });
  scene.stage.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") showCard(scene, event.target, event);
  });
  scene.stage.addEventListener("pointerleave", () => { card.hidden = true; });
});
drawHeader();
document.body.append(card, help);
document.body.classList.toggle("two", scenes.length > 1);
scenes.forEach((scene) => { drawLabels(scene); drawScene(scene); fit(scene, 0.6); });
drawPanel();
})();
