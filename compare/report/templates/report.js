"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const at = (id) => document.getElementById(id);

  // Numbers, formatted as in insource/system/number_format.py.
  const commas = (whole) => String(whole).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
  const many = (count, noun) => `${commas(count)} ${count === 1 ? noun : noun + "s"}`;
  const usd = (value) => {
    if (value >= 100 || value === 0) return "$" + commas(Math.floor(value + 0.5));
    if (value >= 1) return "$" + value.toFixed(2);
    const text = value.toFixed(2 - Math.floor(Math.log10(value)));
    return "$" + text.slice(0, 4) + text.slice(4).replace(/0+$/, "");
  };
  const compact = (value) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
      if (value >= 0.9995 * size) return Number((value / size).toPrecision(3)) + letter;
    }
    return String(Math.floor(value + 0.5));
  };
  const percent = (share) => {
    const value = 100 * share;
    if (value > 0 && value < 0.05) return "<0.1%";
    return value >= 99.95 && value < 100 ? ">99.9%" : value.toFixed(1) + "%";
  };
  const signed = (difference) => {
    const value = 100 * difference, size = Math.abs(value);
    const text = size.toFixed(size >= 0.05 || value === 0 ? 1 : 2);
    return Number(text) === 0 ? "0.0" : (value > 0 ? "+" : "\u2212") + text;
  };

  // Sortable tables. Without this script they have no buttons.
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.querySelectorAll("thead th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head));
    }
  }
  function sort(table, head) {
    const numbers = head.dataset.sort === "number";
    // Numbers sort descending first, names ascending.
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numbers;
    for (const other of table.querySelectorAll("thead th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = head.cellIndex, body = table.tBodies[0];
    const key = (row) => {
      const cell = row.cells[column];
      if (!numbers) return cell.textContent.trim();
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      // Unknown values stay at the bottom.
      if (a === null || b === null) return (a === null) - (b === null);
      const order = numbers ? a - b : a.localeCompare(b);
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  // Labels or fields: search, and the choice of the system whose figures are shown.
  if (data.parts) {
    const rows = [...at("parts-table").tBodies[0].rows];
    const show = (cell, value, text) => {
      cell.textContent = value === null ? "\u2013" : text(value);
      cell.dataset.value = value === null ? "" : value;
    };
    const filter = () => {
      const query = at("parts-filter").value.toLowerCase();
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(query);
      at("parts-count").textContent = `${commas(rows.filter((row) => !row.hidden).length)} shown`;
    };
    const choose = () => {
      const first = Number(at("parts-first").value), second = Number(at("parts-second").value);
      for (const row of rows) {
        const figures = data.parts.figures[Number(row.dataset.at)], own = figures[first], other = figures[second];
        for (const column of [0, 1, 2]) show(row.cells[2 + column], own && own[column], percent);
        show(row.cells[5], other && other[2], percent);
        show(row.cells[6], own && other ? own[2] - other[2] : null, signed);
      }
      const [firstTitle, secondTitle] = at("parts-caption").querySelectorAll("bdi");
      firstTitle.textContent = data.parts.systems[first];
      secondTitle.textContent = data.parts.systems[second];
      for (const head of at("parts-table").querySelectorAll("th[aria-sort]")) head.removeAttribute("aria-sort");
    };
    at("parts-tools").hidden = false;
    at("parts-filter").addEventListener("input", filter);
    for (const id of ["parts-first", "parts-second"]) if (at(id)) at(id).addEventListener("change", choose);
  }

  // Rows in which two systems differ: search, filter, pages.
  if (at("rows-list")) {
    const shown = 10, rows = [...at("rows-list").children];
    const text = (row) => [...row.querySelectorAll(".where bdi, blockquote, .text")].map((element) => element.textContent);
    const texts = rows.map((row) => text(row).join("\n").toLowerCase());
    let first = 0;
    const turn = () => {
      const query = at("rows-filter").value.toLowerCase(), who = at("rows-who").value;
      const matches = rows.filter((row, n) => (!who || row.dataset.who === who) && texts[n].includes(query));
      first = Math.max(0, Math.min(first, shown * Math.floor((matches.length - 1) / shown)));
      const page = new Set(matches.slice(first, first + shown));
      for (const row of rows) row.hidden = !page.has(row);
      const last = Math.min(first + shown, matches.length);
      at("rows-count").textContent = matches.length ? `${first + 1} to ${last} of ${matches.length}` : "none";
      at("rows-back").disabled = first === 0;
      at("rows-on").disabled = last >= matches.length;
    };
    const from = (row) => { first = row; turn(); };
    at("rows-tools").hidden = at("rows-pages").hidden = false;
    at("rows-filter").addEventListener("input", () => from(0));
    at("rows-who").addEventListener("change", () => from(0));
    at("rows-back").addEventListener("click", () => from(first - shown));
    at("rows-on").addEventListener("click", () => from(first + shown));
    turn();
  }

  // Break-even: the formula of `break_even_points` in compare/cost/break_even.py, the sentences and curves of compare/report/cost_section.py.
  const MAX_MACHINES = 1e9;
  function breakEvenPoints(machine, capacity, fixed, price) {
    const gain = price * capacity - machine;
    if (gain * MAX_MACHINES <= machine + fixed) return null;
    let k = Math.floor(fixed / gain) + 1;
    while (Math.floor((k * machine + fixed) / price) + 1 > k * capacity) k += 1;
    const first = Math.floor((k * machine + fixed) / price) + 1;
    const before = Math.floor((fixed + (capacity - 1) * price) / gain);
    const permanent = Math.min(Math.floor((before * machine + fixed) / price), before * capacity) + 1;
    return [first, Math.max(first, permanent)];
  }
  function stepCostOf(inputs) {
    const hourly = inputs.gpu_usd_per_hour;
    const capacity = Math.floor(inputs.requests_per_second * 3600 * inputs.hours_per_month * inputs.utilization);
    const engineer = inputs.engineer_usd_per_month * inputs.engineer_share;
    const machines = (requests) => Math.max(1, Math.ceil(requests / capacity));
    const stepCost = { machine: hourly * inputs.hours_per_month, capacity, machines };
    stepCost.fixed = engineer + inputs.training_hours_per_month * hourly;
    stepCost.usd = (requests) => machines(requests) * stepCost.machine + stepCost.fixed;
    return stepCost;
  }
  function breakEvenText(inputs, title, price) {
    const stepCost = stepCostOf(inputs), volume = inputs.monthly_requests;
    const breakEven = breakEvenPoints(stepCost.machine, stepCost.capacity, stepCost.fixed, price);
    let figure, more;
    if (breakEven === null) {
      figure = "Self-hosting is never cheaper.";
      more = `A full machine costs ${usd(stepCost.machine)} a month, and the ${commas(stepCost.capacity)} requests that `
        + `it can answer cost ${usd(stepCost.capacity * price)} there.`;
    } else {
      figure = `Self-hosting is cheaper from ${many(breakEven[0], "request")} a month.`;
      more = `That is ${compact(breakEven[0] * inputs.tokens_per_request)} tokens.`;
      if (breakEven[1] > breakEven[0]) {
        more += ` Each further machine costs more at first; it is permanently cheaper from ${commas(breakEven[1])}.`;
      }
    }
    if (stepCost.capacity < 1) return { figure, more: "At this utilization a machine answers no request.", here: "" };
    const here = `At ${many(volume, "request")} a month: self-hosted ${usd(stepCost.usd(volume))} with `
      + `${many(stepCost.machines(volume), "machine")}, ${title} ${usd(volume * price)}.`;
    return { figure, more, here };
  }
  function position(value, [low, high]) {
    return 100 * (Math.log10(Math.max(value, 1e-9)) - Math.log10(low)) / (Math.log10(high) - Math.log10(low));
  }
  function curve(cost, volumes, amount) {
    const { x, y } = cost.axes;
    return volumes.map((volume) => `${position(volume, x).toFixed(2)},${(100 - position(amount(volume), y)).toFixed(2)}`).join(" ");
  }
  function volumesOf(cost, stepCost) {
    const [low, high] = cost.axes.x, step = (Math.log10(high) - Math.log10(low)) / cost.samples;
    const volumes = new Set();
    for (let n = 0; n <= cost.samples; n += 1) volumes.add(Math.round(low * 10 ** (step * n)));
    for (let k = 1; k <= cost.steps; k += 1) volumes.add(stepCost.capacity * k).add(stepCost.capacity * k + 1);
    return [...volumes].filter((volume) => volume >= Math.max(low, 1) && volume <= high).sort((a, b) => a - b);
  }
  if (data.cost) {
    const cost = data.cost, form = at("pays-controls"), sliders = [...form.querySelectorAll("input[type=range]")];
    const words = {
      monthly_requests: commas,
      gpu_usd_per_hour: (value) => "$" + value.toFixed(2),
      utilization: (value) => Number((100 * value).toFixed(3)) + "%",
      engineer_share: (value) => Number((100 * value).toFixed(3)) + "%",
    };
    // A slider gives round numbers; the recipe's values need not be round.
    const round = {
      monthly_requests: (value) => Math.max(1, Math.round(Number((10 ** value).toPrecision(3)))),
      gpu_usd_per_hour: (value) => Math.round(100 * value) / 100,
      utilization: (value) => Math.round(100 * value) / 100,
      engineer_share: (value) => Math.round(100 * value) / 100,
    };
    let inputs = { ...cost.inputs };
    const draw = () => {
      const { title, usd_per_request: price } = cost.systems[at("pays-against") ? Number(at("pays-against").value) : 0];
      const stepCost = stepCostOf(inputs), texts = breakEvenText(inputs, title, price), volumes = volumesOf(cost, stepCost);
      at("pays-figure").textContent = texts.figure;
      at("pays-more").textContent = texts.more;
      at("pays-here").firstElementChild.textContent = texts.here;
      at("pays-own").setAttribute("points", stepCost.capacity ? curve(cost, volumes, stepCost.usd) : "");
      at("pays-other").setAttribute("points", curve(cost, volumes, (volume) => volume * price));
      const volume = position(inputs.monthly_requests, cost.axes.x) + "%";
      at("pays-volume").setAttribute("x1", volume);
      at("pays-volume").setAttribute("x2", volume);
      for (const slider of sliders) {
        const text = words[slider.name](inputs[slider.name]);
        at(`shown-${slider.name}`).textContent = text;
        slider.setAttribute("aria-valuetext", `${text} ${slider.labels[0].textContent}`);
      }
    };
    form.hidden = false;
    for (const slider of sliders) {
      slider.addEventListener("input", () => {
        inputs[slider.name] = round[slider.name](Number(slider.value));
        draw();
      });
    }
    if (at("pays-against")) at("pays-against").addEventListener("change", draw);
    at("pays-reset").addEventListener("click", () => {
      form.reset();
      inputs = { ...cost.inputs };
      draw();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  // Folded sections are printed too.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
