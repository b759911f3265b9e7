"use strict";
// The browser of answers: filters, pages, and groups that are built when they are opened. All texts are set as text,
// never as HTML.
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const box = document.getElementById("browser");
  if (!box) return;
  const size = 10;

  const make = (name, attributes, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const known = (value) => value !== null && value !== undefined;
  const shown = (value) => (known(value) ? String(Number(value.toPrecision(4))) : "-");
  const signed = (value) => (known(value) ? (value > 0 ? "+" : "") + shown(value) : "-");
  const unique = (values) => [...new Set(values.filter(known))].sort((a, b) =>
    String(a).localeCompare(String(b), "en", { numeric: true }));
  const short = (text, most) => (text.length > most ? text.slice(0, most - 3) + "..." : text);
  const state = (each) => (known(each.right) ? (each.right ? "right" : "wrong") : "not judged");
  const stage = (group, each) => each.stage || group.stage;

  // The groups of the page, which it holds compressed: numbers of texts stand in place of texts.
  const unpacked = async () => {
    const packed = atob(document.getElementById("report-answers").textContent);
    const bytes = new Uint8Array(packed.length);
    for (let place = 0; place < packed.length; place += 1) bytes[place] = packed.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
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
  const start = ({ texts, groups }) => {
    const text = (number) => (known(number) ? texts[number] : null);
    let found = groups;
    let first = 0;
    let filtering = false;

    // Filters of groups, and filters of single answers: a group matches if one of its answers passes all of them.
    const ofGroups = [];
    const ofAnswers = [];
    const fields = make("fieldset", {}, make("legend", {}, "Filters"));
    const add = (title, input, event) => {
      input.addEventListener(event, update);
      fields.append(make("label", {}, title, input));
    };
    const choose = (title, values, keep, named = String) => {
      if (values.length < 2) return;
      const select = make("select", {}, make("option", { value: "" }, "all"),
        ...values.map((value, place) => make("option", { value: String(place) }, short(named(value), 60))));
      add(title, select, "change");
      keep(() => (select.value === "" ? null : values[Number(select.value)]));
    };
    const ofGroup = (read) => (chosen) => ofGroups.push(() => {
      const value = chosen();
      return value === null ? null : (group) => read(group) === value;
    });
    const ofAnswer = (read) => (chosen) => ofAnswers.push(() => {
      const value = chosen();
      return value === null ? null : (group, each) => read(group, each) === value;
    });
    const bound = (title, keep) => {
      const input = make("input", { type: "number", step: "any", inputmode: "decimal" });
      add(title, input, "input");
      ofAnswers.push(() => {
        const limit = Number(input.value);
        return input.value === "" ? null : (group, each) => known(each.reward) && keep(each.reward, limit);
      });
    };
    const values = (read) => {
      const seen = new Set();
      for (const group of groups) for (const each of group.responses) seen.add(read(group, each));
      return unique([...seen]);
    };
    const seen = (group) => (group.media.length
      ? (group.media.some((each) => each.frames || each.wave) ? "shown" : "not shown") : null);
    const kinds = { sampled: "sampled while training", evaluated: "evaluation" };
    choose("Run", unique(groups.map((group) => group.run)), ofGroup((group) => group.run), (run) => report.runs[run]);
    choose("From", unique(groups.map((group) => group.kind)), ofGroup((group) => group.kind), (kind) => kinds[kind]);
    choose("Stage", values(stage), ofAnswer(stage));
    choose("Iteration, part or set", unique(groups.map((group) => group.table)), ofGroup((group) => group.table));
    choose("True label", unique(groups.map((group) => text(group.label))), ofGroup((group) => text(group.label)));
    choose("Answered label", values((group, each) => each.predicted), ofAnswer((group, each) => each.predicted));
    choose("Right or wrong", values((group, each) => state(each)), ofAnswer((group, each) => state(each)));
    choose("Media", unique(groups.map(seen)), ofGroup(seen));
    bound("Reward at least", (reward, limit) => reward >= limit);
    bound("Reward at most", (reward, limit) => reward <= limit);
    const words = make("input", { type: "search", autocomplete: "off" });
    add("Text", words, "input");
    let lowered = null;
    ofAnswers.push(() => {
      if (!words.value) return null;
      lowered = lowered || texts.map((each) => each.toLowerCase());
      const wanted = words.value.toLowerCase();
      const has = lowered.map((each) => each.includes(wanted));
      const asked = new Map();
      const inPrompt = (group) => {
        if (!asked.has(group)) {
          asked.set(group, has[group.id] || (known(group.label) && has[group.label])
            || group.turns.some((turn) => has[turn[1]]));
        }
        return asked.get(group);
      };
      return (group, each) => has[each.text] || inPrompt(group);
    });
    const orders = {
      "as in the run": null,
      "lowest mean reward first": (a, b) => a.mean - b.mean,
      "highest mean reward first": (a, b) => b.mean - a.mean,
      "fewest right first": (a, b) => a.rate - b.rate,
    };
    const order = make("select", {}, ...Object.keys(orders).map((name) => make("option", {}, name)));
    add("Order", order, "change");
    let passes = () => true;

    const badge = (name, value) => make("span", {}, `${name} `, make("strong", {}, value));
    const answer = (group, each, place) => {
      const facts = make("div", { class: "badges" }, make("strong", {}, `${place + 1}. ${each.why || state(each)}`));
      if (each.stage) facts.append(badge("stage", each.stage));
      if (each.predicted) facts.append(badge("answered", short(each.predicted, 40)));
      if (known(each.reward)) facts.append(badge("reward", shown(each.reward)));
      if (known(each.advantage)) facts.append(badge("advantage", signed(each.advantage)));
      if (known(each.over)) facts.append(badge("over", signed(each.over)));
      for (const [name, value] of Object.entries(each.components)) facts.append(badge(name, shown(value)));
      if (known(each.tokens)) facts.append(badge("tokens", String(each.tokens)));
      if (each.truncated) facts.append(make("strong", {}, "truncated"));
      const words = text(each.text);
      const own = make("pre", { dir: "auto" }, words);
      if (words.length > 800) own.setAttribute("tabindex", "0");
      return make("div", { class: `answer ${state(each)}` }, facts, own);
    };
    const content = (group) => {
      const answers = group.responses.map((each, place) => [passes(group, each), answer(group, each, place)]);
      const others = answers.filter(([passed]) => !passed).map(([, element]) => element);
      const parts = [
        ...group.turns.map(([role, words]) =>
          make("p", { class: "turn", dir: "auto" }, make("strong", {}, `${role}: `), text(words))),
        ...group.media.map(medium),
        make("p", {}, make("strong", {}, "label: "), known(group.label) ? text(group.label) : "none"),
        ...answers.filter(([passed]) => passed).map(([, element]) => element),
      ];
      if (others.length) {
        parts.push(make("details", {}, make("summary", {}, `${others.length} answers that do not match`), ...others));
      }
      return parts;
    };
    const row = (group) => {
      const right = known(group.rate) ? `${Math.round(100 * group.rate)} % right` : "not judged";
      const run = report.runs.length > 1 ? `${report.runs[group.run]}, ` : "";
      const place = group.stage ? `${group.stage}, ${group.table}` : group.table;
      const facts = make("span", { class: "badges" }, badge("label", short(text(group.label) || "none", 40)),
        badge("answers", right));
      if (known(group.mean)) facts.append(badge("mean reward", shown(group.mean)));
      if (filtering) {
        const matching = group.responses.filter((each) => passes(group, each)).length;
        facts.append(badge("match", `${matching} of ${group.responses.length}`));
      }
      const details = make("details", { class: "group" },
        make("summary", {}, `${run}${place}: ${short(text(group.id), 60)}`, facts));
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
      const end = Math.min(first + size, found.length);
      place.textContent = found.length ? `${first + 1} to ${end} of ${found.length}` : "none";
      before.disabled = first === 0;
      after.disabled = end >= found.length;
    };
    const every = (tests) => (...given) => tests.every((test) => test(...given));
    function update() {
      const active = (makers) => makers.map((maker) => maker()).filter((test) => test !== null);
      const answers = active(ofAnswers);
      const keep = every(active(ofGroups));
      passes = every(answers);
      filtering = answers.length > 0;
      let matching = 0;
      found = groups.filter((group) => {
        if (!keep(group)) return false;
        const own = group.responses.filter((each) => passes(group, each)).length;
        matching += own;
        return own > 0;
      });
      const compare = orders[order.value];
      if (compare) {
        const ranked = (group) => Number.isFinite(compare(group, group));
        found = [...found.filter(ranked).sort(compare), ...found.filter((group) => !ranked(group))];
      }
      first = 0;
      const total = groups.reduce((sum, group) => sum + group.responses.length, 0);
      count.textContent = `${found.length} of ${groups.length} groups match, `
        + `with ${matching} of ${total} answers`;
      show();
    }
    before.addEventListener("click", () => { first = Math.max(0, first - size); show(); });
    after.addEventListener("click", () => { first += size; show(); });
    box.replaceChildren(fields, count, list, make("div", { class: "pager" }, before, place, after));
    update();
  };

  unpacked().then(start).catch((error) => {
    box.replaceChildren(make("p", { class: "missing" }, "This browser cannot unpack the answers; it lacks "
      + `DecompressionStream (Chrome 80, Firefox 113, Safari 16.4 and later have it). ${error.name}`));
  });
})();
