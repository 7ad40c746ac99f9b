import { render } from "preact";
import { App } from "./app";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/shell.css";
import "./styles/parts.css";
import "./styles/tables.css";
import "./styles/screens.css";
import { apply } from "./theme";

apply();
const place = document.getElementById("app");
if (place) render(<App />, place);
