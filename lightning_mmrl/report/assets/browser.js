"use strict";
// The browser of sampled answers: filters, pages, and groups that are built when they are opened. All texts are set as
// text, never as HTML.
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const box = document.getElementById("browser");
  if (!box) return;
  const groups = report.groups;
  const size = 10;
  let found = groups;
  let first = 0;

  const make = (name, attributes, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const shown = (value) => (value === null ? "-" : String(Number(value.toPrecision(4))));
  const signed = (value) => (value === null ? "-" : (value > 0 ? "+" : "") + shown(value));
  const unique = (values) => [...new Set(values.filter((value) => value !== null))].sort((a, b) =>
    String(a).localeCompare(String(b), "en", { numeric: true }));
  const short = (text, most) => (text.length > most ? text.slice(0, most - 3) + "..." : text);

  const outcome = (group) => {
    const judged = group.responses.filter((each) => each.right !== null);
    if (!judged.length) return "not judged";
    const right = judged.filter((each) => each.right).length;
    return right === judged.length ? "all right" : right ? "some right" : "none right";
  };

  const filters = {};
  const fields = make("fieldset", {}, make("legend", {}, "Filters"));
  const choose = (key, title, values, read, named = (value) => short(String(value), 60)) => {
    if (values.length < 2) return;
    const select = make("select", {}, make("option", { value: "" }, "all"));
    values.forEach((value, place) => select.append(make("option", { value: String(place) }, named(value))));
    select.addEventListener("change", update);
    fields.append(make("label", {}, title, select));
    filters[key] = (group) => select.value === "" || read(group) === values[Number(select.value)];
  };
  const bound = (key, title, keep) => {
    const input = make("input", { type: "number", step: "any", inputmode: "decimal" });
    input.addEventListener("input", update);
    fields.append(make("label", {}, title, input));
    filters[key] = (group) => input.value === "" || group.responses.some((each) =>
      each.reward !== null && keep(each.reward, Number(input.value)));
  };
  choose("run", "Run", unique(groups.map((group) => group.run)), (group) => group.run, (run) => report.runs[run]);
  choose("stage", "Stage", unique(groups.map((group) => group.stage)), (group) => group.stage);
  choose("table", "Iteration or part", unique(groups.map((group) => group.table)), (group) => group.table);
  choose("label", "Label", unique(groups.map((group) => group.label)), (group) => group.label);
  choose("outcome", "Answers", unique(groups.map(outcome)), outcome);
  bound("least", "Reward at least", (reward, limit) => reward >= limit);
  bound("most", "Reward at most", (reward, limit) => reward <= limit);
  const words = make("input", { type: "search", autocomplete: "off" });
  words.addEventListener("input", update);
  fields.append(make("label", {}, "Text", words));
  filters.words = (group) => {
    const wanted = words.value.toLowerCase();
    return !wanted || [group.id, group.label || "", ...group.turns.map((turn) => turn[1]),
      ...group.responses.map((each) => each.text)].some((text) => text.toLowerCase().includes(wanted));
  };

  const badge = (name, value) => make("span", {}, `${name} `, make("strong", {}, value));
  const answer = (each, place) => {
    const state = each.right === null ? "unknown" : each.right ? "right" : "wrong";
    const facts = make("div", { class: "badges" }, make("strong", {}, `${place + 1}. ${each.why || state}`),
      badge("reward", shown(each.reward)), badge("over", signed(each.over)));
    for (const [name, value] of Object.entries(each.components)) facts.append(badge(name, shown(value)));
    facts.append(badge("tokens", String(each.tokens)));
    if (each.truncated) facts.append(make("strong", {}, "truncated"));
    const text = make("pre", { dir: "auto" }, each.text);
    if (each.text.length > 800) text.setAttribute("tabindex", "0");
    return make("div", { class: `answer ${state}` }, facts, text);
  };
  const wave = (each) => {
    const space = "http://www.w3.org/2000/svg";
    const picture = document.createElementNS(space, "svg");
    const size = { class: "wave", viewBox: `0 0 ${each.columns} 80`, preserveAspectRatio: "none", role: "img",
      "aria-label": `outline of the sound, ${each.caption}` };
    for (const [key, value] of Object.entries(size)) picture.setAttribute(key, value);
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", each.wave);
    picture.append(path);
    return picture;
  };
  const medium = (each) => {
    const note = each.error ? `${each.name}: ${each.error}` : each.caption ? `${each.name}, ${each.caption}` : each.name;
    const figure = make("figure", { class: "medium" }, make("figcaption", {}, note));
    const frames = each.frames || [];
    if (frames.length) {
      const pictures = frames.map((place, number) => make("img", { src: place, loading: "lazy",
        alt: frames.length > 1 ? `frame ${number + 1} of ${frames.length}` : "picture" }));
      figure.append(make("div", { class: "strip", tabindex: "0", role: "group", "aria-label": "frames" }, ...pictures));
    }
    if (each.wave) figure.append(wave(each));
    if (each.play) {
      const start = each.from ? `#t=${each.from}` : "";
      figure.append(make(each.kind === "video" ? "video" : "audio", { src: each.play + start, controls: "",
        preload: "none", "aria-label": each.name }));
    }
    return figure;
  };
  const content = (group) => [
    ...group.turns.map(([role, text]) => make("p", { class: "turn", dir: "auto" }, make("strong", {}, `${role}: `), text)),
    ...group.media.map(medium),
    make("p", {}, make("strong", {}, "label: "), group.label === null ? "none" : group.label),
    ...group.responses.map(answer),
  ];
  const row = (group) => {
    const right = group.rate === null ? "not judged" : `${Math.round(100 * group.rate)} % right`;
    const run = report.runs.length > 1 ? `${report.runs[group.run]}, ` : "";
    const title = `${run}${group.stage}, ${group.table}: ${short(group.id, 60)}`;
    const facts = make("span", { class: "badges" }, badge("label", short(group.label || "none", 40)),
      badge("answers", right), badge("mean reward", shown(group.mean)));
    const details = make("details", { class: "group" }, make("summary", {}, title, facts));
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(...content(group));
    });
    return details;
  };

  const count = make("p", { "aria-live": "polite", class: "note" });
  const list = make("div", {});
  const before = make("button", { type: "button" }, "Previous");
  const after = make("button", { type: "button" }, "Next");
  const place = make("span", {});
  const show = () => {
    list.replaceChildren(...found.slice(first, first + size).map(row));
    count.textContent = `${found.length} of ${groups.length} groups match`;
    const end = Math.min(first + size, found.length);
    place.textContent = found.length ? `${first + 1} to ${end} of ${found.length}` : "none";
    before.disabled = first === 0;
    after.disabled = end >= found.length;
  };
  function update() {
    const tests = Object.values(filters);
    found = groups.filter((group) => tests.every((test) => test(group)));
    first = 0;
    show();
  }
  before.addEventListener("click", () => { first = Math.max(0, first - size); show(); });
  after.addEventListener("click", () => { first += size; show(); });
  box.replaceChildren(fields, count, list, make("div", { class: "pager" }, before, place, after));
  show();
})();
